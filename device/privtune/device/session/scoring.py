"""Score records through the same path as training: noise, the tuned top in the cloud, the head and the targets here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from privtune.device.data.batches import evaluation_batches
from privtune.device.data.encode import EncodedDataset
from privtune.device.link.rpc import Stream
from privtune.device.model.final_states import FinalStates
from privtune.device.model.objectives import Readout, Score, targets
from privtune.device.release.perturber import Uploader
from privtune.device.session.window import PendingBatch, SendAhead, forward_only


@dataclass(frozen=True, kw_only=True)
class ScoredBatch(PendingBatch):
    """A micro-batch and what the model should have answered, N targets."""

    targets_N: Tensor


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What scoring needs of a session.

    stream: to the tuned top.
    uploader: remembers what the cloud holds of this session's records.
    states: reads the answers.
    readout: where a classifier's head reads.
    batch_size: records in a message.
    in_flight: messages under way at once.
    """

    stream: Stream
    uploader: Uploader
    states: FinalStates
    readout: Readout
    batch_size: int
    in_flight: int

    def score(
        self, data: EncodedDataset, *, step: int = 0, first_number: int = 0, first_handle: int = 0
    ) -> dict[str, float]:
        """The metrics of `Score` over all records.

        step, first_number, first_handle: where messages and records are numbered from, apart from those of training.
        """
        score, rows = Score(data.label_names), self.states.head.rows_at_once
        coming = self._coming(data, step, first_number, first_handle)
        request = partial(forward_only, self.uploader, self.states)
        window = SendAhead(self.stream, coming, request, in_flight=self.in_flight)
        for batch in window:
            answer = window.answer(batch)
            out_ND = self.states.out(data, batch.indices, batch.released, batch.readout_N, answer)
            for start in range(0, len(out_ND), rows):
                some = slice(start, start + rows)
                score.add(self.states.logits(out_ND[some]), batch.targets_N[some])
        return score.metrics()

    def _coming(self, data: EncodedDataset, step: int, first_number: int, first_handle: int) -> Iterator[ScoredBatch]:
        lengths_R = self.states.perturber.lengths(data)
        for number, indices in enumerate(evaluation_batches(lengths_R, self.batch_size), first_number):
            released = self.states.perturber.release(data, indices, first_handle=first_handle)
            readout_N, targets_N = targets(data, indices, released, self.readout)
            yield ScoredBatch(
                step=step,
                number=number,
                indices=indices,
                released=released,
                readout_N=readout_N,
                targets_N=targets_N,
                asks=self.states.wanted(data, indices),
            )
