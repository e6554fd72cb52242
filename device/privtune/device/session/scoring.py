"""Score records through the same path as training: noise, the tuned top in the cloud, the head and the targets here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from privtune.device.data.batches import IndexArray, evaluation_batches
from privtune.device.data.encode import EncodedDataset
from privtune.device.link.rpc import Stream
from privtune.device.model.final_states import Outputs
from privtune.device.model.objectives import Readout, Score, targets
from privtune.device.release.perturber import Perturber, Released, Uploader
from privtune.shared.wire import Message


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What scoring needs of a session.

    in_flight: batches that may be under way at once. rows_at_once: rows of logits in memory at a time.
    """

    stream: Stream
    perturber: Perturber
    uploader: Uploader
    outputs: Outputs
    logits: Callable[[Tensor], Tensor]
    readout: Readout
    batch_size: int
    in_flight: int
    rows_at_once: int

    def score(
        self, data: EncodedDataset, *, step: int = 0, first_batch: int = 0, first_handle: int = 0
    ) -> dict[str, float]:
        """The metrics of `Score` over all records.

        step, first_batch, first_handle: so numbered that messages and records never meet those of training.
        """
        score = Score(data.label_names)
        batches = deque(enumerate(evaluation_batches(data.lengths, self.batch_size), first_batch))
        waiting: deque[_Batch] = deque()
        while batches or waiting:
            while batches and len(waiting) < self.in_flight:
                number, indices = batches.popleft()
                released = self.perturber.release(data, indices, first_handle=first_handle)
                readout_N, targets_N = targets(data, indices, released, self.readout)
                batch = _Batch(
                    number=number,
                    indices=indices,
                    released=released,
                    readout_N=readout_N,
                    targets_N=targets_N,
                    answered=self.outputs.wanted(data, indices),
                )
                if batch.answered:
                    self.stream.send(self._forward(batch, step))
                waiting.append(batch)
            batch = waiting.popleft()
            answer = None
            if batch.answered:
                answer = self.stream.output(step, batch.number, partial(self._forward, batch, step, inline_all=True))
            out_ND = self.outputs.out(data, batch.indices, batch.released, batch.readout_N, answer)
            for start in range(0, len(out_ND), self.rows_at_once):
                some = slice(start, start + self.rows_at_once)
                score.add(self.logits(out_ND[some]), batch.targets_N[some])
        return score.metrics()

    def _forward(self, batch: _Batch, step: int, *, inline_all: bool = False) -> Message:
        return self.uploader.forward(
            batch.released,
            self.outputs.asked(batch.released, batch.readout_N),
            step=step,
            micro_batch=batch.number,
            forward_only=True,
            inline_all=inline_all,
        )


@dataclass(frozen=True, kw_only=True)
class _Batch:
    number: int
    indices: IndexArray
    released: Released
    readout_N: IndexArray
    targets_N: Tensor
    answered: bool
