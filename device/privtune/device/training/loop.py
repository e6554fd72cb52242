"""The training loop of a job, as the device sees it: one flat loop over optimiser steps.

    release -> send -> (cloud: top) -> output -> head, loss -> gradient -> (cloud: backward, optimiser) -> next step
    with a tail:                    -> states -> tail, head, loss, backward, optimiser here            -> next step

Up to `in_flight` micro-batches are under way at once, also across the step boundary: the device perturbs and uploads
the next one while the cloud computes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from privtune.device.data.batches import BatchPlan, IndexArray
from privtune.device.data.encode import EncodedDataset
from privtune.device.link.rpc import Stream
from privtune.device.model.final_states import Outputs, StateStore
from privtune.device.model.head import HeadTrainer
from privtune.device.model.objectives import Readout, count_targets, targets
from privtune.device.release.perturber import Perturber, Released, Uploader
from privtune.device.session.scoring import Scorer
from privtune.device.training.progress import EvalInfo, Progress, StepInfo
from privtune.shared.errors import JobCancelled, JobPaused
from privtune.shared.job_spec import JobSpec
from privtune.shared.wire import GRADIENT, STEP, Message, tensor_message
from privtune.split.v1 import split_pb2 as pb

# Evaluation micro-batches are numbered from here, so that their answers never meet those of training.
EVALUATION_BASE = 1 << 20


@dataclass(kw_only=True)
class Totals:
    """What a run has done so far, over all its sessions in this process."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(kw_only=True)
class MicroBatch:
    """A micro-batch under way. `share`: its part of the step's loss; `answered`: the cloud was asked about it."""

    step: int
    index: int
    indices: IndexArray
    released: Released
    readout_N: IndexArray
    targets_N: Tensor
    items: int
    last: bool
    answered: bool

    @property
    def share(self) -> float:
        """The micro-batch's part of the step's mean loss."""
        return len(self.targets_N) / self.items


class Trainer:
    """One job on one stream, from `first_step` until its end, a pause or an error."""

    def __init__(
        self,
        *,
        spec: JobSpec,
        stream: Stream,
        perturber: Perturber,
        head: HeadTrainer,
        train: EncodedDataset,
        validation: EncodedDataset | None,
        readout: Readout,
        width: int,
        checkpoints: Path,
        progress: Progress,
        stop: threading.Event,
        totals: Totals,
        states: StateStore | None = None,
    ) -> None:
        self._spec, self._stream, self._perturber, self._head = spec, stream, perturber, head
        self._data, self._validation, self._readout = train, validation, readout
        self._checkpoints, self._progress, self._stop = checkpoints, progress, stop
        self.totals = totals
        self.plan = BatchPlan(train.lengths, spec.train)
        self._uploader = Uploader(width, spec.codec)
        self._outputs = Outputs(head, perturber, width=width, codec=spec.codec, kept=states)
        self.metrics: dict[str, float] = {}

    def run(self, first_step: int) -> None:
        """Train to the end. Raises JobPaused or JobCancelled at a step boundary, everything checkpointed."""
        total = self.plan.total_steps
        coming = self._coming(first_step)
        under_way: deque[MicroBatch] = deque()
        for step in range(first_step, total):
            began = time.monotonic()
            loss, tokens, done = 0.0, 0, False
            while not done:
                self._fill(under_way, coming)
                batch = under_way.popleft()
                loss += self._learn(batch)
                tokens += batch.released.rows()
                done = batch.last
            pausing = self._stop.is_set()
            checkpoint = pausing or (step + 1) % self._spec.train.checkpoint_every == 0 or step + 1 == total
            control = pb.StepControl(checkpoint=checkpoint, pause=pausing)
            self._stream.send(Message(kind=STEP, step=step, control=control))
            if not pausing:
                self._fill(under_way, coming)
            norm = self._head.step()
            report = self._stream.expect(step, 0, STEP).report or pb.StepReport()
            if report.checkpointed:
                self._head.save(self._checkpoints, step + 1)
            loss = report.shared_loss if self._spec.labels == "shared" else loss
            self._account(step, began, tokens, loss, norm if self._spec.tail else report.grad_norm)
            self._obey(report.outcome, step + 1)
            if self._validation is not None and self._evaluates_after(step):
                self.metrics = self.evaluate(self._validation, step + 1)

    def evaluate(self, data: EncodedDataset, step: int) -> dict[str, float]:
        """Score a held-out data set through the same noise, with the adapter as it is now."""
        scorer = Scorer(
            stream=self._stream,
            perturber=self._perturber,
            uploader=self._uploader,
            outputs=self._outputs,
            # With shared labels the head is in the cloud and its logits come back.
            logits=(lambda out_ND: out_ND) if self._spec.labels == "shared" else self._head.logits,
            readout=self._readout,
            batch_size=self._spec.train.batch_size,
            in_flight=self._spec.train.in_flight,
            rows_at_once=self._head.rows_at_once,
        )
        metrics = scorer.score(data, step=step, first_batch=EVALUATION_BASE, first_handle=len(self._data))
        self._progress.evaluated(EvalInfo(step=step, metrics=metrics))
        return metrics

    def _coming(self, first_step: int) -> Iterator[MicroBatch]:
        for step in range(first_step, self.plan.total_steps):
            batches = self.plan.micro_batches(step)
            items = sum(count_targets(self._data, indices) for indices in batches)
            for index, indices in enumerate(batches):
                released = self._perturber.release(self._data, indices)
                readout_N, targets_N = targets(self._data, indices, released, self._readout)
                yield MicroBatch(
                    step=step,
                    index=index,
                    indices=indices,
                    released=released,
                    readout_N=readout_N,
                    targets_N=targets_N,
                    items=items,
                    last=index == len(batches) - 1,
                    answered=self._outputs.wanted(self._data, indices),
                )

    def _fill(self, under_way: deque[MicroBatch], coming: Iterator[MicroBatch]) -> None:
        """Send micro-batches ahead, up to the window."""
        while len(under_way) < self._spec.train.in_flight:
            batch = next(coming, None)
            if batch is None:
                return
            if batch.answered:
                self._stream.send(self._forward(batch))
            under_way.append(batch)

    def _learn(self, batch: MicroBatch) -> float:
        """Output, loss and gradient of one micro-batch; with shared labels the cloud does all three."""
        if self._spec.labels == "shared":
            return 0.0
        answer = None
        if batch.answered:
            answer = self._stream.output(batch.step, batch.index, partial(self._forward, batch, inline_all=True))
        if answer is None or self._spec.tail:
            return self._head.learn(
                self._outputs.states(self._data, batch.indices, batch.released, answer),
                torch.from_numpy(batch.readout_N),
                batch.targets_N,
                step=batch.step,
                micro_batch=batch.index,
                items=batch.items,
            )
        loss, gradient_ND = self._head.loss(
            torch.from_numpy(answer.tensor()),
            batch.targets_N,
            step=batch.step,
            micro_batch=batch.index,
            items=batch.items,
        )
        self._stream.send(tensor_message(GRADIENT, batch.step, batch.index, gradient_ND.numpy(), self._spec.codec))
        return loss

    def _forward(self, batch: MicroBatch, *, inline_all: bool = False) -> Message:
        shared = batch.targets_N.tolist() if self._spec.labels == "shared" else ()
        return self._uploader.forward(
            batch.released,
            self._outputs.asked(batch.released, batch.readout_N),
            step=batch.step,
            micro_batch=batch.index,
            last=batch.last,
            forward_only=self._spec.tail > 0,
            inline_all=inline_all,
            shared_labels=shared,
            weight=0.0 if self._spec.tail else batch.share,
        )

    def _evaluates_after(self, step: int) -> bool:
        """At the end of every epoch and of the job."""
        if self._validation is None:
            return False
        return (step + 1) % self.plan.steps_per_epoch == 0 or step + 1 == self.plan.total_steps

    def _account(self, step: int, began: float, tokens: int, loss: float, grad_norm: float) -> None:
        totals = self.totals
        totals.steps += 1
        totals.tokens += tokens
        totals.seconds += time.monotonic() - began
        speed = totals.tokens / max(totals.seconds, 1e-9)
        left = (self.plan.total_steps - step - 1) * totals.seconds / totals.steps
        self._progress.step(
            StepInfo(
                step=step + 1,
                total_steps=self.plan.total_steps,
                epoch=step // self.plan.steps_per_epoch + 1,
                loss=loss,
                grad_norm=grad_norm,
                tokens=totals.tokens,
                tokens_per_second=speed,
                bytes_up=totals.bytes_up + self._stream.bytes_up,
                bytes_down=totals.bytes_down + self._stream.bytes_down,
                seconds_left=left,
            )
        )

    def _obey(self, outcome: int, steps_done: int) -> None:
        if outcome == pb.STEP_OUTCOME_CANCEL:
            raise JobCancelled(f"the job was cancelled after step {steps_done}")
        if outcome == pb.STEP_OUTCOME_PAUSE and steps_done < self.plan.total_steps:
            raise JobPaused(f"paused after step {steps_done}; the checkpoint is written on both sides")
