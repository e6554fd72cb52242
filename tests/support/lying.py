"""A cloud that lies in one field of its messages: an interceptor changes what comes down before the device reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from privtune.device.link import rpc
from privtune.split.v1 import split_pb2 as pb

HOSTILE = "x\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2J\x9b1m\u202ey"
_WHOLE = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
_REAL = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}
_FRAMES = ("OUTPUT", "STEP", "TABLE")
_ONLY_A_DEVICE_SENDS = {"forward": "weight", "control": "slope"}  # one field of each speaks for it


@dataclass(frozen=True)
class Lie:
    """A field of a message from the cloud, and what it is changed to. message: the RPC, or the kind of a frame."""

    message: str
    field: str
    value: str

    def __str__(self) -> str:
        return f"{self.message}.{self.field}={self.value}"


def lies() -> list[Lie]:
    """Every field of every message that a cloud sends, with each value that its type makes one think of."""
    found = [Lie("Open", *one) for one in _lies(pb.OpenResponse.DESCRIPTOR)]
    found += [Lie("Commit", *one) for one in _lies(pb.CommitResponse.DESCRIPTOR)]
    found += [Lie("Fetch", *one) for one in _lies(pb.FetchResponse.DESCRIPTOR)]
    return found + [Lie(kind, *one) for kind in _FRAMES for one in _lies(pb.Frame.DESCRIPTOR)]


def _lies(descriptor: Descriptor, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in descriptor.fields:
        name = prefix + field.name
        if field.message_type is not None:
            if field.name in _ONLY_A_DEVICE_SENDS:
                yield f"{name}.{_ONLY_A_DEVICE_SENDS[field.name]}", "-1"
            else:
                yield name, "gone"
                yield from _lies(field.message_type, f"{name}.")
        else:
            yield from ((name, value) for value in _values(field))


def _values(field: FieldDescriptor) -> tuple[str, ...]:
    if field.cpp_type in _WHOLE:
        return ("0", "1", "most")
    if field.cpp_type in _REAL:
        return ("nan", "inf", "-1")
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return ("other",)
    return ("0", "99") if field.enum_type is not None else ("empty", "hostile", "long")


class _Liar(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Tells one lie whenever its message comes. told: how often."""

    def __init__(self, lie: Lie) -> None:
        self._lie, self.told = lie, 0

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        call = continuation(details, request)
        if self._names(details) and call.exception() is None:
            self._tell(call.result())
        return call

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        call = continuation(details, request)
        return _Changed(call, self._tell) if self._names(details) else call

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        def change(frame: pb.Frame) -> None:
            if pb.FrameKind.Name(frame.kind) == f"FRAME_KIND_{self._lie.message}":
                self._tell(frame)

        return _Changed(continuation(details, requests), change)

    def _names(self, details: Any) -> bool:
        return bool(details.method.rpartition("/")[2] == self._lie.message)

    def _tell(self, message: Message) -> None:
        self.told += 1
        *path, name = self._lie.field.split(".")
        for part in path:
            message = getattr(message, part)
        _change(message, message.DESCRIPTOR.fields_by_name[name], self._lie.value)


class _Changed:
    """A call whose messages are changed as they come."""

    def __init__(self, call: Any, change: Callable[[Any], None]) -> None:
        self._call, self._change = call, change

    def __iter__(self) -> Iterator[Any]:
        for message in self._call:
            self._change(message)
            yield message

    def cancel(self) -> None:
        self._call.cancel()


def _change(message: Message, field: FieldDescriptor, value: str) -> None:
    if value == "gone":
        message.ClearField(field.name)
        return
    new = _value(field, value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        setattr(message, field.name, not getattr(message, field.name))
    else:
        setattr(message, field.name, new)


def _value(field: FieldDescriptor, value: str) -> Any:
    if field.cpp_type in _REAL:
        return float(value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if value == "most":
        return (1 << (32 if field.cpp_type == FieldDescriptor.CPPTYPE_UINT32 else 64)) - 1
    if value.isdigit():
        return int(value)
    text = {"empty": "", "hostile": HOSTILE, "long": "y" * (1 << 20)}[value]
    return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text


def lying_links(patch: pytest.MonkeyPatch, lie: Lie) -> _Liar:
    """From here on, the links of this process hear this lie."""
    channel, liar = rpc.open_channel, _Liar(lie)
    patch.setattr(rpc, "open_channel", lambda *gateway: grpc.intercept_channel(channel(*gateway), liar))
    return liar
