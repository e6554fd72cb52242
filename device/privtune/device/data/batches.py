"""Which records make up each micro-batch: a pure function of (seed, epoch), so a resume needs no saved position.

Records of similar length share a micro-batch, which halves the padding on short texts; the order of steps is random.
R records.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privtune.shared.job_spec import TrainSpec

IndexArray = npt.NDArray[np.int64]

# Lengths are sorted inside pools of this many optimiser steps: enough to cut padding, few enough to stay random.
POOL_STEPS = 16


@dataclass(frozen=True)
class BatchPlan:
    """The whole training run as (step, micro-batch) -> record indices.

    lengths_R: tokens of each record.
    train: seed, epochs and sizes.
    """

    lengths_R: IndexArray
    train: TrainSpec

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the data."""
        return -(-len(self.lengths_R) // (self.train.batch_size * self.train.accumulation))

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole job."""
        planned = self.steps_per_epoch * self.train.epochs
        return min(planned, self.train.max_steps) if self.train.max_steps else planned

    @property
    def evaluations(self) -> int:
        """How often held-out records are evaluated, where there are any."""
        return -(-self.total_steps // self._between)

    def evaluates_after(self, steps: int) -> bool:
        """Whether held-out records are evaluated once so many steps are done."""
        return steps > 0 and (steps % self._between == 0 or steps == self.total_steps)

    @property
    def _between(self) -> int:
        return self.train.evaluate_every or self.steps_per_epoch

    def times(self, steps: int) -> int:
        """In how many of the first steps a record takes part, at most: once in each pass."""
        return -(-steps // self.steps_per_epoch)

    def micro_batches(self, step: int) -> list[IndexArray]:
        """The record indices of each micro-batch of optimiser step `step` (from 0)."""
        records = self._epoch(step // self.steps_per_epoch)[step % self.steps_per_epoch]
        size = self.train.batch_size
        return [records[start : start + size] for start in range(0, len(records), size)]

    def _epoch(self, epoch: int) -> list[IndexArray]:
        return _epoch_steps(self, epoch)

    def __hash__(self) -> int:
        return id(self)


@lru_cache(maxsize=4)
def _epoch_steps(plan: BatchPlan, epoch: int) -> list[IndexArray]:
    rng = np.random.default_rng([plan.train.seed, epoch])
    order = rng.permutation(len(plan.lengths_R))
    per_step = plan.train.batch_size * plan.train.accumulation
    pool = per_step * POOL_STEPS
    steps: list[IndexArray] = []
    for start in range(0, len(order), pool):
        chunk = order[start : start + pool]
        chunk = chunk[np.argsort(plan.lengths_R[chunk], kind="stable")]
        steps += [chunk[at : at + per_step] for at in range(0, len(chunk), per_step)]
    return [steps[index] for index in rng.permutation(len(steps))]


def evaluation_batches(lengths_R: IndexArray, batch_size: int) -> list[IndexArray]:
    """All records once, those of similar length together."""
    order = np.argsort(lengths_R, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
