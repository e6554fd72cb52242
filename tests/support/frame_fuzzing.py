"""What a peer may send instead of frames: whole streams as bytes, twisted, and fed to either side.

A stream is a count of bytes before each frame, so that a twisted one is still bytes and can be kept in a file.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.release_cache import ReleaseCache
from privtune.cloud.compute.step_machine import StepMachine
from privtune.cloud.compute.text_cache import TextCache
from privtune.cloud.compute.top_session import TopSession
from privtune.device.link.rpc import Stream
from privtune.shared import wire
from privtune.shared.errors import CloudUnreachable, InternalError, PrivTuneError
from privtune.shared.job_spec import JobSpec
from privtune.shared.public_table import PublicTable
from privtune.split.v1 import split_pb2 as pb
from tests.support.tiny_models import save_model

WIDTH, STEPS = 32, 3
MOST_BYTES = 1 << 16  # of a tensor
EDGES = (0, 1, 2, 3, 255, 256, 65_535, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)
SIDES = ("cloud", "cloud-tail", "cloud-infer", "device")
TABLE = PublicTable(rows_KD=np.eye(4, WIDTH, dtype=np.float32), offsets_PD=np.zeros((2, WIDTH), np.float32), placed=2)


def packed(frames: Iterable[bytes]) -> bytes:
    """Frames as one string of bytes."""
    return b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames)


def unpacked(stream: bytes) -> Iterator[bytes]:
    """The frames of such a string; a last one that is cut short is shorter."""
    while stream:
        size = int.from_bytes(stream[:4], "little")
        yield stream[4 : 4 + size]
        stream = stream[4 + size :]


def honest(side: str) -> list[bytes]:
    """The frames that a well-behaved peer sends to a side."""
    messages = list(_to_device() if side == "device" else _to_cloud(side))
    writer = wire.FrameWriter(epoch=1, chunk_bytes=200)
    return [frame.SerializeToString() for message in messages for frame in writer.frames(message)]


def _to_cloud(side: str) -> Iterator[wire.Message]:
    rng, lengths = np.random.default_rng(1), [2, 3]
    for step in range(2):
        rows_MD = rng.standard_normal((sum(lengths), WIDTH)).astype(np.float32)
        message = wire.tensor_message(wire.FORWARD, step, 0, rows_MD, "fp32")
        readout = b"" if side == "cloud-tail" else wire.pack_positions(np.array([0, 3]))
        message.forward = pb.ForwardHeader(
            record_ids=[0, 1], lengths=lengths, inlined=[True, True], readout=readout, forward_only=side != "cloud"
        )
        message.last_micro_batch = True
        if side == "cloud-infer":
            message.forward.past.extend([0, 0])
            yield message
            more = wire.tensor_message(wire.FORWARD, step, 1, rows_MD[:2], "fp32")
            more.forward = pb.ForwardHeader(
                record_ids=[0, 1], lengths=[1, 1], inlined=[True, True], past=lengths, forward_only=True
            )
            yield more
            yield wire.Message(kind=wire.END, step=step, forward=pb.ForwardHeader(record_ids=[0, 1]))
            continue
        yield message
        if side == "cloud":
            yield wire.tensor_message(wire.GRADIENT, step, 0, rows_MD[:2], "fp32")
        yield wire.Message(kind=wire.STEP, step=step, control=pb.StepControl())


def _to_device() -> Iterator[wire.Message]:
    yield wire.Message(kind=wire.TABLE, step=0, table=pb.TableHeader(sha256=TABLE.sha256))
    for step in range(2):
        rows_ND = np.full((2, WIDTH), 0.5, np.float32)
        yield wire.Message(kind=wire.RESEND, step=step)
        yield wire.tensor_message(wire.OUTPUT, step, 0, rows_ND, "fp32")
        report = pb.StepReport(outcome=pb.STEP_OUTCOME_APPLIED, grad_norm=1.0, checkpointed=True)
        yield wire.Message(kind=wire.STEP, step=step, report=report)


def twisted(stream: bytes, rng: random.Random) -> bytes:
    """The stream with one to four changes: of bytes, of a field, of the order of frames."""
    frames = list(unpacked(stream)) or [b""]
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(frames))
        change = rng.randrange(8)
        if change == 0:
            frames.insert(rng.randrange(len(frames) + 1), frames[at])
        elif change == 1 and len(frames) > 1:
            del frames[at]
        elif change == 2:
            other = rng.randrange(len(frames))
            frames[at], frames[other] = frames[other], frames[at]
        elif change == 3:
            frames[at] = _bytes_changed(frames[at], rng)
        else:
            frames[at] = _field_changed(frames[at], rng)
    return packed(_renumbered(frames) if rng.random() < 0.5 else frames)


def _bytes_changed(frame: bytes, rng: random.Random) -> bytes:
    changed = bytearray(frame or b"\0")
    for _ in range(rng.randint(1, 3)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randint(0, len(changed))] if rng.random() < 0.2 else changed)


def _field_changed(raw: bytes, rng: random.Random) -> bytes:
    """One field of a frame or of a header set to another value, with the checksum of the payload made to fit."""
    frame = pb.Frame()
    try:
        frame.ParseFromString(raw)
    except DecodeError:
        return raw
    message: Message = frame
    while True:
        field = rng.choice(list(message.DESCRIPTOR.fields))
        if field.message_type is None:
            break
        message = getattr(message, field.name)
    _set(message, field, rng)
    if rng.random() < 0.9:
        frame.crc32c = google_crc32c.value(frame.payload)
    return frame.SerializeToString()


def _set(message: Any, field: FieldDescriptor, rng: random.Random) -> None:
    if field.label == FieldDescriptor.LABEL_REPEATED:
        values = getattr(message, field.name)
        if rng.random() < 0.3 and values:
            del values[rng.randrange(len(values)) :]
        else:
            values.extend([_value(field, rng)] * rng.choice((1, 1, 2, 5000)))
    elif rng.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(field, rng))


def _value(field: FieldDescriptor, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice((float("nan"), float("inf"), -1.0, 0.0, 1e30))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice((b"", b"\0" * 4, b"\xff" * 8, np.float32("nan").tobytes() * 64, bytes(5 * 4 * WIDTH)))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return rng.choice(("", "x\x1b[2J", "y" * 5000, TABLE.sha256))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice((*range(10), 99))
    bits = 32 if kind == FieldDescriptor.CPPTYPE_UINT32 else 64
    return rng.choice([edge for edge in EDGES if edge < 1 << bits])


def _renumbered(frames: Sequence[bytes]) -> Iterator[bytes]:
    """With sequence numbers that fit, so that what is changed is reached."""
    for number, raw in enumerate(frames):
        frame = pb.Frame()
        with suppress(DecodeError):
            frame.ParseFromString(raw)
            frame.seq = number
            raw = frame.SerializeToString()
        yield raw


class Sides:
    """A cloud's and a device's end, each new for every stream.

    folder: for checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        save_model(folder / "enc", "bert", "classification", num_labels=2)
        save_model(folder / "dec", "llama", "causal-lm")
        self._host = Host(Catalog([f"{name}={folder / name}" for name in ("enc", "dec")]), folder / "bottoms")
        self._folder, self._tops = folder, dict[str, TopSession]()

    def feed(self, side: str, stream: bytes) -> PrivTuneError | None:
        """Feed a stream to a side; what it ended with.

        Raises whatever is no error of the table, InternalError too.
        """
        try:
            frames = list(self._parsed(stream))
        except DecodeError:  # gRPC ends the stream
            frames = []
        error = None
        try:
            (self._device if side == "device" else self._cloud)(frames, side)
        except InternalError:
            raise
        except PrivTuneError as raised:
            error = raised
        said = "" if error is None else error.message + error.detail
        assert said.isprintable()
        assert len(said) < 1000
        return error

    @staticmethod
    def _parsed(stream: bytes) -> Iterator[pb.Frame]:
        for raw in unpacked(stream):
            frame = pb.Frame()
            frame.ParseFromString(raw)
            yield frame

    def _cloud(self, frames: Sequence[pb.Frame], side: str) -> None:
        top = self._top(side)
        texts = TextCache(max_bytes=1 << 20, max_texts=4, idle_s=60) if side == "cloud-infer" else None
        machine = StepMachine(
            top, ReleaseCache(WIDTH, "fp32", 1 << 16), lambda: None, texts=texts, max_padded_bytes=1 << 20
        )
        reader = wire.FrameReader(epoch=1, max_tensor_bytes=MOST_BYTES)
        for frame in frames:
            message = reader.feed(frame)
            for answer in machine.handle(message) if message is not None else ():
                assert len(answer.payload) <= 1 << 20

    def _top(self, side: str) -> TopSession:
        if side not in self._tops:
            spec = {"model": "enc", "training_file": "device://x", "codec": "fp32", "tail": int(side != "cloud")}
            spec |= {"tuning": {"rank": 1}, "train": {"accumulation": 2, "batch_size": 4, "max_length": 16}}
            spec |= {"model": "dec", "task": "causal-lm"} if side == "cloud-infer" else {}
            self._tops[side] = TopSession(self._host, JobSpec.model_validate(spec), 10, self._folder / side)
        self._tops[side].rewind(0)
        return self._tops[side]

    @staticmethod
    def _device(frames: Sequence[pb.Frame], _: str) -> None:
        opened = pb.OpenResponse(session_epoch=1, max_payload_bytes=4096, max_tensor_bytes=MOST_BYTES)
        stream = Stream(lambda _: _Call(frames), opened, _never, patience=5)
        try:
            with suppress(CloudUnreachable):  # nothing more comes
                table = stream.expect(0, 0, wire.TABLE).table
                assert table is None or len(table.sha256) < 1 << 20
                for step in range(STEPS):
                    answer = stream.output(step, 0, lambda step=step: wire.Message(kind=wire.FORWARD, step=step))
                    answer.tensor(rows=2, width=WIDTH)
                    stream.expect(step, 0, wire.STEP)
        finally:
            stream.abort()


class _Call:
    """A call whose answers are known."""

    def __init__(self, frames: Sequence[pb.Frame]) -> None:
        self._frames = frames

    def __iter__(self) -> Iterator[pb.Frame]:
        return iter(self._frames)

    def cancel(self) -> None:
        pass


def _never(error: Exception) -> PrivTuneError:
    raise error
