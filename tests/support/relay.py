"""A gRPC relay between device and cloud, which sees every message of the protocol and can harm one of them.

The bytes of a message pass through unread; only their kind is looked at, to name the protocol's state.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from privtune.device.training.loop import EVALUATION_BASE
from privtune.shared.wire import FORWARD, HEADER_BYTES, OUTPUT, STEP
from privtune.split.v1 import split_pb2 as pb

_LIMITS = [("grpc.max_receive_message_length", 2 * HEADER_BYTES), ("grpc.max_send_message_length", 2 * HEADER_BYTES)]
_BACKOFF = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]


@dataclass(frozen=True, order=True)
class State:
    """A place in the protocol: the message that is under way. sender: device or cloud."""

    sender: str
    name: str

    def __str__(self) -> str:
        return f"{self.sender}:{self.name}"


@dataclass(frozen=True)
class Fault:
    """What happens when a message is under way.

    kind: lost, duplicate, reorder, late and corrupt are done to the message; any other is done by `Relay.harm`, before
        the message is passed on or, with `after`, once it has been.
    number: which message of this state, from 1.
    """

    state: State
    kind: str
    number: int = 1
    after: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {'after' if self.after else 'at'} {self.state} {self.number}"


class Relay:
    """Listens on loopback and passes on every call to `target`. Use as a context manager.

    harm: carries out the faults that are not done to a message, by kind.
    late_s: how long a late message waits.
    """

    def __init__(self, target: str, harm: Callable[[str], None], *, late_s: float) -> None:
        self._harm, self._late_s = harm, late_s
        self._lock = threading.Lock()
        self._upstream = grpc.insecure_channel(target, [*_LIMITS, *_BACKOFF])
        self._server = grpc.server(ThreadPoolExecutor(max_workers=32), options=_LIMITS)
        self._server.add_generic_rpc_handlers((_Handler(self),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self.plan([])

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0)
        self._upstream.close()

    def plan(self, faults: list[Fault]) -> None:
        """Forget what was seen, and do these from here on, each once."""
        with self._lock:
            self._planned = list(faults)
            self.seen: Counter[State] = Counter()
            self.done: list[Fault] = []
            self.releases: set[bytes] = set()

    # Calls

    def call(self, name: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        """A call with one answer."""
        method = self._upstream.unary_unary(f"/privtune.split.v1.SplitService/{name}")
        sent = list(self._pass(State("device", name), iter([request])))
        if not sent:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the request was lost")
        with _status_of(context):
            for one in sent:
                answer = method(one, metadata=_metadata(context), timeout=context.time_remaining())
        answers = list(self._pass(State("cloud", name), iter([answer])))
        if not answers:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return answers[0]

    def fetch(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """A call with a stream of answers."""
        method = self._upstream.unary_stream("/privtune.split.v1.SplitService/Fetch")
        with _status_of(context):
            answers = method(request, metadata=_metadata(context), timeout=context.time_remaining())
            context.add_callback(answers.cancel)
            yield from self._pass(State("cloud", "Fetch"), answers)

    def stream(self, name: str, frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """A session's stream."""
        method = self._upstream.stream_stream(f"/privtune.split.v1.SplitService/{name}")
        with _status_of(context):
            upwards = self._pass("device", _until_the_end(frames))
            answers = method(upwards, metadata=_metadata(context))
            context.add_callback(answers.cancel)
            yield from self._pass("cloud", answers)

    # Messages

    def _pass(self, where: State | str, messages: Iterator[bytes]) -> Iterator[bytes]:
        """Pass messages on, but for those that a fault is done to."""
        held: bytes | None = None
        for data in messages:
            fault = self._arrived(where if isinstance(where, State) else State(where, self._name(data)))
            kind = "" if fault is None else fault.kind
            if kind == "late":
                time.sleep(self._late_s)
            if kind == "reorder":
                held = data
            elif kind == "corrupt":
                yield _corrupted(data, where)
            elif kind == "duplicate":
                yield from (data, data)
            elif fault is not None and kind != "lost" and not fault.after:
                self._harm(kind)
                yield data
            elif kind != "lost":
                yield data
                if fault is not None and fault.after and kind != "late":
                    self._harm(kind)
                if held is not None:
                    yield held
                    held = None

    def _arrived(self, state: State) -> Fault | None:
        with self._lock:
            self.seen[state] += 1
            for fault in self._planned:
                if (fault.state, fault.number) == (state, self.seen[state]):
                    self._planned.remove(fault)
                    self.done.append(fault)
                    return fault
        return None

    def _name(self, data: bytes) -> str:
        """The kind of a frame; of what a device releases, also its records' bytes are kept."""
        frame = pb.Frame.FromString(data)
        if frame.kind == FORWARD:
            with self._lock:
                self.releases |= _releases(frame)
        if frame.micro_batch >= EVALUATION_BASE and frame.kind in (FORWARD, OUTPUT):
            return "EVALUATE" if frame.kind == FORWARD else "EVALUATED"
        if frame.kind == STEP and frame.control.checkpoint:
            return "CHECKPOINT"
        if frame.kind == STEP and frame.report.checkpointed:
            return "CHECKPOINTED"
        return pb.FrameKind.Name(frame.kind).removeprefix("FRAME_KIND_")


class _Handler(grpc.GenericRpcHandler):
    """Calls of any name, as bytes."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        name = call.method.rpartition("/")[2]
        if name in ("Train", "Infer"):
            return grpc.stream_stream_rpc_method_handler(lambda it, context: self._relay.stream(name, it, context))
        if name == "Fetch":
            return grpc.unary_stream_rpc_method_handler(self._relay.fetch)
        return grpc.unary_unary_rpc_method_handler(lambda it, context: self._relay.call(name, it, context))


@contextlib.contextmanager
def _status_of(context: grpc.ServicerContext) -> Iterator[None]:
    """Answer with the status of the call behind it."""
    try:
        yield
    except grpc.RpcError as error:
        failed: Any = error
        context.set_trailing_metadata(failed.trailing_metadata() or ())
        context.abort(failed.code(), failed.details())


def _metadata(context: grpc.ServicerContext) -> list[tuple[str, str]]:
    return [(key, value) for key, value in context.invocation_metadata() if key != "user-agent"]


def _until_the_end(frames: Iterator[bytes]) -> Iterator[bytes]:
    """The frames that come; a connection that breaks ends them without an error of its own."""
    with contextlib.suppress(grpc.RpcError):
        yield from frames


def _releases(frame: pb.Frame) -> set[bytes]:
    """The bytes of each record that a frame (of one chunk) carries."""
    found, start = set(), 0
    rows = sum(length for length, inlined in zip(frame.forward.lengths, frame.forward.inlined, strict=True) if inlined)
    for length, inlined in zip(frame.forward.lengths, frame.forward.inlined, strict=True):
        if inlined:
            size = len(frame.payload) * length // rows
            found.add(frame.payload[start : start + size])
            start += size
    return found


def _corrupted(data: bytes, where: State | str) -> bytes:
    """A byte changed: of a frame's payload, which has a checksum, else of the file's bytes that are fetched."""
    if isinstance(where, State):
        response = pb.FetchResponse.FromString(data)
        response.data = _flipped(response.data)
        return response.SerializeToString()
    frame = pb.Frame.FromString(data)
    frame.payload = _flipped(frame.payload)
    return frame.SerializeToString()


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :] if data else b"\x55"
