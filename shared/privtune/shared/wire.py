"""Messages and the frames that carry them: chunking, checksums, order. Both ends use it; it does not import grpc.

A message is one unit of the protocol (a micro-batch's representations, a gradient, a step). It travels as one or more
frames, each with at most `chunk_bytes` of payload, its own crc32c and its sequence number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import google_crc32c
import numpy as np
import numpy.typing as npt

from privtune.shared.codec import FloatArray, decode, encode, row_bytes
from privtune.shared.errors import FrameCorrupt, MessageTooLarge, SessionSuperseded
from privtune.split.v1 import split_pb2 as pb

DEFAULT_CHUNK_BYTES = 1 << 20
# Room for a frame's fields around its payload: read-out positions and record handles of a large micro-batch.
HEADER_BYTES = 4 << 20

FORWARD = pb.FRAME_KIND_FORWARD
OUTPUT = pb.FRAME_KIND_OUTPUT
GRADIENT = pb.FRAME_KIND_GRADIENT
STEP = pb.FRAME_KIND_STEP
CUT_GRADIENT = pb.FRAME_KIND_CUT_GRADIENT
RESEND = pb.FRAME_KIND_RESEND
END = pb.FRAME_KIND_END
TABLE = pb.FRAME_KIND_TABLE

_CODECS = {
    "fp32": pb.CODEC_FP32,
    "bf16": pb.CODEC_BF16,
    "ids8": pb.CODEC_IDS8,
    "ids16": pb.CODEC_IDS16,
    "int8": pb.CODEC_INT8,
}
_CODEC_NAMES = {number: name for name, number in _CODECS.items()}


def codec_number(name: str) -> int:
    """The protobuf enum value of a codec's name."""
    return int(_CODECS[name])


def codec_name(number: int) -> str:
    """The codec's name. Raises FrameCorrupt for a number that this side does not know."""
    try:
        return _CODEC_NAMES[number]  # type: ignore[index]
    except KeyError:
        raise FrameCorrupt(f"unknown tensor codec {number}") from None


@dataclass(kw_only=True)
class Message:
    """One message on the stream.

    kind: a `FrameKind` of the protocol.
    step, micro_batch: its place in the session.
    payload: `rows` x `width` elements in `codec`, or nothing.
    forward, control, report, table: the header that its kind has, if any.
    last_micro_batch: it ends the step.
    wire_bytes: of the frames that brought it; 0 for one made here.
    """

    kind: int
    step: int
    micro_batch: int = 0
    payload: bytes | bytearray = b""
    rows: int = 0
    width: int = 0
    codec: str = ""
    forward: pb.ForwardHeader | None = None
    control: pb.StepControl | None = None
    report: pb.StepReport | None = None
    table: pb.TableHeader | None = None
    last_micro_batch: bool = False
    wire_bytes: int = 0

    @property
    def facts(self) -> dict[str, str | int]:
        """What a log may say of it: kind, place and sizes, nothing of its contents."""
        names = {value: name.removeprefix("FRAME_KIND_").lower() for name, value in pb.FrameKind.items()}
        return {
            "kind": names.get(self.kind, "unknown"),
            "step": self.step,
            "micro_batch": self.micro_batch,
            "rows": self.rows,
            "width": self.width,
            "codec": self.codec,
            "payload_bytes": len(self.payload),
        }

    def tensor(self, *, rows: int | None = None, width: int | None = None) -> FloatArray:
        """The payload as a (rows, width) float32 matrix.

        rows, width: what was asked for. Raises `FrameCorrupt` for another shape or a size that is not its own.
        """
        if rows not in (None, self.rows) or width not in (None, self.width) or not self.codec:
            raise FrameCorrupt(
                f"a tensor of {self.rows} x {self.width} in {self.codec or 'no codec'} came, "
                f"not of {self.rows if rows is None else rows} x {self.width if width is None else width}"
            )
        return decode(self.payload, self.rows, self.width, self.codec)


def tensor_message(kind: int, step: int, micro_batch: int, h_ND: FloatArray, codec: str) -> Message:
    """A message that carries an (N, D) matrix. Raises NonFinite as `encode`."""
    return Message(
        kind=kind,
        step=step,
        micro_batch=micro_batch,
        payload=encode(h_ND, codec),
        rows=h_ND.shape[0],
        width=h_ND.shape[1],
        codec=codec,
    )


def pack_positions(positions_N: npt.NDArray[np.int64]) -> bytes:
    """Read-out positions as little-endian uint32 bytes."""
    return positions_N.astype("<u4").tobytes()


def readout_positions(header: pb.ForwardHeader) -> npt.NDArray[np.int64]:
    """The flat positions b * T + t that a FORWARD frame reads out; without any named, every row of every record."""
    if not header.readout:
        return every_row(np.fromiter(header.lengths, dtype=np.int64))
    if len(header.readout) % 4:
        raise FrameCorrupt("read-out positions are not a whole number of uint32")
    return np.frombuffer(header.readout, dtype="<u4").astype(np.int64)


def every_row(lengths_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The flat positions b * T + t of all rows, T the longest: a tail reads every state."""
    width = int(lengths_B.max())
    return np.flatnonzero(np.arange(width)[None, :] < lengths_B[:, None])


@dataclass(kw_only=True)
class FrameWriter:
    """Cuts messages into numbered frames, for one direction of a session."""

    epoch: int
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    seq: int = 0
    bytes_sent: int = 0

    def frames(self, message: Message) -> Iterator[pb.Frame]:
        """Yield the frames of a message, in order."""
        view = memoryview(message.payload)
        count = max(1, -(-len(view) // self.chunk_bytes))
        for index in range(count):
            chunk = bytes(view[index * self.chunk_bytes : (index + 1) * self.chunk_bytes])
            frame = pb.Frame(
                session_epoch=self.epoch,
                seq=self.seq,
                step=message.step,
                micro_batch=message.micro_batch,
                kind=message.kind,  # type: ignore[arg-type]
                chunk_index=index,
                chunk_count=count,
                payload=chunk,
                crc32c=google_crc32c.value(chunk),
                last_micro_batch=message.last_micro_batch,
            )
            if index == 0:
                self._add_headers(frame, message)
            self.seq += 1
            self.bytes_sent += frame.ByteSize()
            yield frame

    @staticmethod
    def _add_headers(frame: pb.Frame, message: Message) -> None:
        if message.codec:
            frame.tensor.codec = codec_number(message.codec)  # type: ignore[assignment]
            frame.tensor.rows, frame.tensor.width = message.rows, message.width
        if message.forward is not None:
            frame.forward.CopyFrom(message.forward)
        if message.control is not None:
            frame.control.CopyFrom(message.control)
        if message.report is not None:
            frame.report.CopyFrom(message.report)
        if message.table is not None:
            frame.table.CopyFrom(message.table)


@dataclass(kw_only=True)
class FrameReader:
    """Checks the frames of one direction of a session and reassembles messages from them.

    Raises:
        SessionSuperseded: a frame of another epoch.
        FrameCorrupt: a gap, a wrong checksum or a malformed chunk.
        MessageTooLarge: raised before memory is allocated for it.
    """

    epoch: int
    max_tensor_bytes: int
    expected_seq: int = 0
    bytes_received: int = 0
    _first: pb.Frame | None = None
    _parts: bytearray = field(default_factory=bytearray)
    _next_chunk: int = 0
    _message_bytes: int = 0

    @property
    def unfinished(self) -> bool:
        """Whether frames of a message have come, but not all of them."""
        return self._first is not None

    def feed(self, frame: pb.Frame) -> Message | None:
        """Take one frame; returns the message that it completes, if any. A frame seen before is ignored."""
        if frame.session_epoch != self.epoch:
            raise SessionSuperseded("this frame belongs to another session of the job; open the job again")
        if frame.seq < self.expected_seq:
            return None
        if frame.seq > self.expected_seq:
            raise FrameCorrupt(f"frame {self.expected_seq} is missing; frame {frame.seq} arrived instead")
        if google_crc32c.value(frame.payload) != frame.crc32c:
            raise FrameCorrupt(f"the checksum of frame {frame.seq} is wrong")
        self.expected_seq += 1
        size = frame.ByteSize()
        self.bytes_received += size
        self._message_bytes += size
        # A tensor's chunks and their fields take less: more is chunks of nothing, or headers that nobody reads.
        if self._message_bytes > 2 * self.max_tensor_bytes + HEADER_BYTES:
            raise MessageTooLarge(self._too_large(self._message_bytes))
        self._append(frame)
        if frame.chunk_index + 1 < frame.chunk_count:
            return None
        return self._finish()

    def _append(self, frame: pb.Frame) -> None:
        if frame.kind == pb.FRAME_KIND_UNSPECIFIED:
            raise FrameCorrupt("a frame has no kind")
        if frame.chunk_count < 1 or frame.chunk_index != self._next_chunk:
            raise FrameCorrupt(f"chunk {self._next_chunk} is missing; chunk {frame.chunk_index} arrived instead")
        if frame.chunk_index == 0:
            self._check_size(frame)
            self._first, self._parts = frame, bytearray()
        elif self._first is None or frame.chunk_count != self._first.chunk_count:
            raise FrameCorrupt("a message changed its number of chunks in transit")
        if len(self._parts) + len(frame.payload) > self.max_tensor_bytes:
            raise MessageTooLarge(self._too_large(len(self._parts) + len(frame.payload)))
        self._parts += frame.payload
        self._next_chunk = frame.chunk_index + 1

    def _check_size(self, frame: pb.Frame) -> None:
        if frame.HasField("tensor"):
            size = frame.tensor.rows * row_bytes(frame.tensor.width, codec_name(frame.tensor.codec))
            if size > self.max_tensor_bytes:
                raise MessageTooLarge(self._too_large(size))

    def _too_large(self, size: int) -> str:
        return (
            f"a tensor of {size} bytes exceeds the agreed {self.max_tensor_bytes}; "
            "lower --batch-size or --max-length, or raise the cloud's --max-tensor-mib"
        )

    def _finish(self) -> Message:
        first, self._first, self._next_chunk = self._first, None, 0
        size, self._message_bytes = self._message_bytes, 0
        if first is None:
            raise FrameCorrupt("a message ended before it began")
        return Message(
            kind=first.kind,
            step=first.step,
            micro_batch=first.micro_batch,
            payload=self._parts,
            rows=first.tensor.rows,
            width=first.tensor.width,
            codec=codec_name(first.tensor.codec) if first.HasField("tensor") else "",
            forward=first.forward if first.HasField("forward") else None,
            control=first.control if first.HasField("control") else None,
            report=first.report if first.HasField("report") else None,
            table=first.table if first.HasField("table") else None,
            last_micro_batch=first.last_micro_batch,
            wire_bytes=size,
        )
