"""Micro-batches under way: sent ahead of their answers up to a bound, and sent in full where the cloud asks for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from privtune.device.data.batches import IndexArray
from privtune.device.link.rpc import Stream
from privtune.device.model.final_states import FinalStates
from privtune.device.release.perturber import Released, Uploader
from privtune.shared.wire import Message


@dataclass(frozen=True, kw_only=True)
class PendingBatch:
    """A micro-batch from its release to its answer.

    step, number: name its messages on the stream.
    indices: its records.
    released: what may leave of them.
    readout_N: the positions that the head reads, flat in the padded batch.
    asks: whether the cloud has to be asked about it.
    """

    step: int = 0
    number: int
    indices: IndexArray
    released: Released
    readout_N: IndexArray
    asks: bool


B = TypeVar("B", bound=PendingBatch)
B_contra = TypeVar("B_contra", bound=PendingBatch, contravariant=True)


class MakeMessage(Protocol[B_contra]):
    """Makes the message of a micro-batch."""

    def __call__(self, batch: B_contra, /, *, inline_all: bool = False) -> Message:
        """inline_all: with the bytes of all records, also of those that the cloud holds."""


class SendAhead(Generic[B]):
    """Keeps up to `in_flight` micro-batches under way; the oldest is taken first.

    coming: the micro-batches in order; each is made, and so released, when its turn to be sent comes.
    """

    def __init__(self, stream: Stream, coming: Iterator[B], message: MakeMessage[B], *, in_flight: int) -> None:
        self._stream, self._coming, self._message, self._in_flight = stream, coming, message, in_flight
        self._under_way: deque[B] = deque()

    def fill(self) -> None:
        """Send micro-batches ahead, up to the bound."""
        while len(self._under_way) < self._in_flight and (batch := next(self._coming, None)) is not None:
            if batch.asks:
                self._stream.send(self._message(batch))
            self._under_way.append(batch)

    def __iter__(self) -> Iterator[B]:
        """The micro-batches in order, the window full while each is worked on."""
        while True:
            self.fill()
            if not self._under_way:
                return
            yield self._under_way.popleft()

    def answer(self, batch: B) -> Message | None:
        """Wait for what the cloud computed of a micro-batch; None where it was not asked. Raises as `Stream.expect`."""
        if not batch.asks:
            return None
        return self._stream.output(batch.step, batch.number, partial(self._message, batch, inline_all=True))


def forward_only(
    uploader: Uploader, states: FinalStates, batch: PendingBatch, /, *, inline_all: bool = False
) -> Message:
    """The message of a micro-batch that no gradient follows."""
    return uploader.forward(
        batch.released,
        states.asked(batch.readout_N),
        step=batch.step,
        micro_batch=batch.number,
        forward_only=True,
        inline_all=inline_all,
    )
