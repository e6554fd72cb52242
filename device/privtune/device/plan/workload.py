"""How much a job computes and sends, counted from the lengths of its records. No estimate but for the frames' headers.

R records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privtune.device.data.batches import BatchPlan, evaluation_batches
from privtune.device.data.encode import EncodedDataset
from privtune.shared.codec import row_bytes
from privtune.shared.job_spec import JobSpec

Counts = npt.NDArray[np.int64]

# Bytes of protobuf around a payload; tests/integration/test_plan.py holds their sums to real jobs.
_FORWARD, _SHARED, _TENSOR, _EMPTY, _STEP_UP, _STEP_DOWN = 38, 7, 30, 14, 14, 22


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Of a data set: tokens_R of each record as it is released, and targets_R, the terms that the loss has of it."""

    tokens_R: Counts
    targets_R: Counts

    @classmethod
    def of(cls, data: EncodedDataset, swell: float = 1.0, padded: Sequence[int] = (), rows: float = 1.0) -> Lengths:
        """Of records as they are sent.

        swell: tokens for a token, where surrogates change their number.
        padded: lengths that they are padded to; none: they are not.
        rows: released rows for a token, where the mechanism changes their number.
        """
        tokens_R = np.maximum(1, np.rint(data.lengths * swell)).astype(np.int64)
        if padded:
            tokens_R = np.array(padded)[np.searchsorted(padded, np.minimum(tokens_R, padded[-1]))]
        tokens_R = np.maximum(1, np.rint(tokens_R * rows)).astype(np.int64)
        if data.loss_masks is None:
            return cls(tokens_R=tokens_R, targets_R=np.ones_like(tokens_R))
        targets_R = np.array([mask_T[1:].sum() for mask_T in data.loss_masks], dtype=np.int64)
        return cls(tokens_R=tokens_R, targets_R=np.rint(targets_R * swell).astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How rows are sent.

    hidden: the model's width.
    width, codec: of a released row.
    table: bytes of the public table that ids stand for.
    """

    hidden: int
    width: int
    codec: str
    table: int = 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Training, or all evaluations.

    positions: padding included, over all micro-batches.
    fresh: of them, those that are released for the first time.
    asked: of them, those that the cloud computes.
    batches: micro-batches that the cloud answers.
    up, down: bytes.
    """

    positions: int
    fresh: int
    asked: int
    batches: int
    up: int
    down: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The whole job.

    steps: optimiser steps.
    widest: positions of the largest micro-batch.
    rows: released rows, each once, and the bytes that they are stored in.
    """

    steps: int
    widest: int
    rows: int
    stored: int
    training: Stage
    evaluation: Stage | None

    @property
    def up(self) -> int:
        """Bytes to the cloud."""
        return self.training.up + (self.evaluation.up if self.evaluation is not None else 0)

    @property
    def down(self) -> int:
        """Bytes from the cloud."""
        return self.training.down + (self.evaluation.down if self.evaluation is not None else 0)


def workload_of(spec: JobSpec, train: Lengths, held_out: Lengths | None, sent: Sent) -> Workload:
    """What the job of this description takes on these records."""
    plan = BatchPlan(train.tokens_R, spec.train)
    batches = [batch for step in range(plan.steps_per_epoch) for batch in plan.micro_batches(step)]
    passes = plan.total_steps / plan.steps_per_epoch
    training = _part(spec, train, sent, [train.tokens_R[batch] for batch in batches], passes, gradients=True)
    steps = {"up": plan.total_steps * _STEP_UP + sent.table, "down": plan.total_steps * _STEP_DOWN}
    rows = min(1.0, passes) * int(train.tokens_R.sum())
    evaluation = None
    if held_out is not None:
        scored = evaluation_batches(held_out.tokens_R, spec.train.batch_size)
        lengths = [held_out.tokens_R[batch] for batch in scored]
        evaluation = _part(spec, held_out, sent, lengths, plan.evaluations, gradients=False)
        rows += int(held_out.tokens_R.sum())
    return Workload(
        steps=plan.total_steps,
        widest=max(_positions(lengths) for lengths in (train.tokens_R[batch] for batch in batches)),
        rows=round(rows),
        stored=round(rows * row_bytes(sent.width, sent.codec)),
        training=Stage(**_sum(vars(training), steps)),
        evaluation=evaluation,
    )


def _part(spec: JobSpec, data: Lengths, sent: Sent, batches: list[Counts], passes: float, *, gradients: bool) -> Stage:
    """passes: over the data. gradients: this part trains."""
    first = min(1.0, passes)
    asked = first if spec.tail else passes  # a tail's states are kept
    positions, targets = sum(map(_positions, batches)), int(data.targets_R.sum())
    rows, records = int(data.tokens_R.sum()), len(data.tokens_R)
    shared = spec.labels == "shared" and gradients
    headers = records * (1 + _varint(records) + shared) + sum(_varint(int(tokens)) for tokens in data.tokens_R)
    headers += (0 if spec.tail else 4 * targets) + len(batches) * (_FORWARD + _SHARED * shared)
    up = first * rows * row_bytes(sent.width, sent.codec) + asked * headers
    answer = targets * row_bytes(sent.hidden, spec.codec)
    if spec.tail:
        down = rows * row_bytes(sent.hidden, spec.output_codec)
    elif shared:
        down = 0
    elif spec.labels == "shared":
        down = targets * row_bytes(spec.num_labels or 2, spec.codec)
    elif spec.zeroth_order.on and gradients:
        down = 2 * targets * row_bytes(sent.hidden, "fp32")
    else:
        down = answer
    if gradients and spec.gradients_leave and spec.labels == "private":
        up += passes * (answer + len(batches) * _TENSOR)
    return Stage(
        positions=round(passes * positions),
        fresh=round(first * positions),
        asked=round(asked * positions),
        batches=round(asked * len(batches)),
        up=round(up),
        down=round(asked * (down + len(batches) * (_EMPTY if shared else _TENSOR))),
    )


def _positions(lengths_B: Counts) -> int:
    return len(lengths_B) * int(lengths_B.max())


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: value + other.get(name, 0) for name, value in one.items()}


def _varint(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))
