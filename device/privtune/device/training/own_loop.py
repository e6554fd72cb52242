"""A job whose loop is its owner's: the session that the passes of `privtune.device.client.remote_top` go through.

    records -> released once -> FORWARD -> (cloud: top) -> OUTPUT -> the owner's head, loss, backward -> GRADIENT
    step -> STEP -> (cloud: optimiser) -> next step

Admission, noise, store, ledger and transcript are those of every job; the messages are those of the built-in loop.
B records, N read-out positions, D hidden width.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from privtune.device.data.batches import IndexArray
from privtune.device.data.encode import EncodedDataset
from privtune.device.home.job_lock import job_lock
from privtune.device.home.run_request import RunRequest
from privtune.device.link.rpc import Link, Stream
from privtune.device.model.head import HeadTrainer
from privtune.device.model.objectives import count_targets, targets
from privtune.device.release.perturber import Uploader
from privtune.device.session.handshake import hand_over, open_request
from privtune.device.session.run_settings import RunSettings
from privtune.device.training.job import RunResult, ended, failing, start_info
from privtune.device.training.loop import EVALUATION_BASE, Totals
from privtune.device.training.prepare import Prepared, RunContext, prepared
from privtune.device.training.progress import TrainingProgress
from privtune.device.training.submit import report_refusal
from privtune.shared.errors import (
    InvalidInput,
    JobCancelled,
    JobConflict,
    JobPaused,
    NonFinite,
    PolicyRefused,
    PrivTuneError,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.checkpoint import checkpoint_steps
from privtune.shared.wire import GRADIENT, STEP, Message, tensor_message
from privtune.shared.wording import counted
from privtune.split.v1 import split_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """An optimiser step of the cloud's blocks.

    step: steps done.
    grad_norm: of the cloud's parameters, before clipping.
    checkpointed: both sides can be taken back to it.
    """

    step: int
    grad_norm: float
    checkpointed: bool


class OwnLoop:
    """One job's passes and steps, in the owner's order. Use `own_loop`.

    job: ready to train.
    head: of the model, for an owner who has none of his own; it is kept with each checkpoint.
    steps: optimiser steps done.
    """

    def __init__(self, run: RunContext, job: Prepared) -> None:
        self._run, self.job, self._totals = run, job, Totals()
        self.steps, self._kept = 0, 0
        self._stream: Stream | None = None
        self._passes = self._evaluated = 0  # since the last step, and in the session
        self._waiting: dict[int, tuple[int, torch.Size]] = {}  # for their gradient: step and shape of the output
        self.head = HeadTrainer(
            job.package.head, run.spec.optim, seed=run.spec.train.seed, total_steps=job.plan.total_steps
        )
        opened = self._open(checkpoint_steps(run.folder.checkpoints))
        self.head.rewind(run.folder.checkpoints, opened.resume_step)
        run.progress.started(start_info(run, job, self.head, opened))

    def forward(self, records_B: IndexArray, *, learning: bool) -> tuple[int, Tensor]:
        """The number of a pass, and out_ND of the cloud's blocks.

        Args:
            records_B: different records; those from the number of training records on are held out.
            learning: with dropout, and a gradient is expected; held-out records are never learned.

        Raises InvalidInput for a pass that the job's description does not allow; as `Stream.expect`.
        """
        data, indices, first = self._where(records_B)
        train = self._run.spec.train
        if not learning:
            parts = [indices[start : start + train.batch_size] for start in range(0, len(indices), train.batch_size)]
            return -1, torch.cat([self._asked(data, part, first, self._evaluation(), learning=False) for part in parts])
        if data is not self.job.train:
            raise InvalidInput("held-out records are for evaluation: use `torch.no_grad()` or `eval()`")
        for limit, found, name, what in (
            (train.batch_size, len(indices), "batch_size", "records in a pass"),
            (train.accumulation, self._passes + 1, "accumulation", "passes in a step"),
            (train.in_flight, len(self._waiting) + 1, "in_flight", "passes that wait for their backward pass"),
        ):
            if found > limit:
                raise InvalidInput(f"more than {name}={limit} {what}: raise {name} when you open the job", param=name)
        if self.steps >= self.job.plan.total_steps:
            raise InvalidInput(
                f"the job has {counted(self.steps, 'step')}, and all are done: `finish` it, or open one with another "
                "max_steps",
                param="max_steps",
            )
        number, self._passes = self._passes, self._passes + 1
        out_ND = self._asked(data, indices, first, number, learning=True)
        self._waiting[number] = self.steps, out_ND.shape
        return number, out_ND

    def backward(self, step: int, number: int, gradient_ND: Tensor) -> None:
        """Send d loss / d out_ND of a pass of a step. Raises InvalidInput for a second one, or one that comes late."""
        if self._waiting.get(number, (None, None))[0] != step:
            raise InvalidInput("a pass through the cloud's blocks takes one backward pass, before the next `step`")
        if not torch.isfinite(gradient_ND).all():
            raise NonFinite(f"the gradient of step {step} is not finite; lower the learning rates")
        del self._waiting[number]
        gradient = tensor_message(GRADIENT, step, number, gradient_ND.contiguous().numpy(), self._run.spec.codec)
        with self._session() as stream:
            stream.send(gradient)

    def step(self, *, checkpoint: bool | None = None) -> StepDone:
        """Let the cloud's optimiser step on the gradients since the last one; a pass without one had the gradient 0.

        checkpoint: keep the state that it leaves, on both sides; None: every `checkpoint_every` steps and at the end.

        Raises InvalidInput where nothing was passed; JobPaused, JobCancelled where the job's owner asked for that.
        """
        self._check_open()
        if not self._passes:
            raise InvalidInput("nothing went through the cloud's blocks since the last step")
        for number, (step, shape) in list(self._waiting.items()):
            self.backward(step, number, torch.zeros(shape))
        spec, total = self._run.spec.train, self.job.plan.total_steps
        usual = (self.steps + 1) % spec.checkpoint_every == 0 or self.steps + 1 == total
        control = pb.StepControl(checkpoint=usual if checkpoint is None else checkpoint)
        with self._session() as stream:
            stream.send(Message(kind=STEP, step=self.steps, control=control))
            report = stream.expect(self.steps, 0, STEP).report or pb.StepReport()
        self.steps, self._passes = self.steps + 1, 0
        self._totals.steps += 1
        if report.checkpointed:
            self.head.save(self._run.folder.checkpoints, self.steps)
            self._kept = self.steps
        if report.outcome == pb.STEP_OUTCOME_CANCEL:
            raise JobCancelled(f"the job was cancelled after step {self.steps}")
        if report.outcome == pb.STEP_OUTCOME_PAUSE and self.steps < total:
            raise JobPaused(f"paused after step {self.steps}; both sides have a checkpoint, so open the job again")
        return StepDone(step=self.steps, grad_norm=report.grad_norm, checkpointed=report.checkpointed)

    def rewind(self, step: int) -> None:
        """Take the cloud back to the state after `step` steps. The head stays as it is.

        Raises JobConflict where the cloud has no checkpoint of that step.
        """
        if step == self.steps and not self._passes:
            return
        self.close()
        opened = self._open([step])
        if opened.resume_step != step:
            raise JobConflict(
                f"the cloud has no checkpoint of step {step}: it keeps the last two that it made, every "
                f"checkpoint_every={self._run.spec.train.checkpoint_every} steps"
            )

    def finish(self) -> RunResult:
        """End the job: the cloud writes the adapter, and the device keeps the head.

        Raises JobConflict where steps are left and the present one has no checkpoint.
        """
        total = self.job.plan.total_steps
        if self.steps != total:
            if self._kept != self.steps or not self.steps:
                raise JobConflict(
                    f"the job is at step {self.steps} of {total}, which has no checkpoint: end it after "
                    "`step(checkpoint=True)`"
                )
            self.close()
            total = self.steps
            self._open([total], total)
        commit = pb.CommitRequest(
            job_id=self._run.job_id, session_epoch=self._epoch, final_step=total, tokens=self._totals.tokens
        )
        trained = self._run.link.commit(commit).adapter_sha256
        self.close()
        return ended(self._run, self.job, self._totals, trained, total)

    def close(self) -> None:
        """End the session; a job that is not finished can be opened again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
            self._totals.bytes_up += stream.bytes_up
            self._totals.bytes_down += stream.bytes_down

    def _open(self, steps: list[int], total: int | None = None) -> pb.OpenResponse:
        """A session at the newest of these steps of which the cloud has a checkpoint too, else at the beginning."""
        run, job = self._run, self.job
        table = job.releasing.noise.mechanism.table
        request = open_request(
            job.package,
            run.job_id,
            run.spec,
            job.state.holder,
            total_steps=total or job.plan.total_steps,
            checkpoint_steps=steps,
            table=table,
        )
        opened = run.link.open(request)
        self._epoch, self.steps, self._kept = opened.session_epoch, opened.resume_step, opened.resume_step
        self._stream = stream = run.link.stream(
            opened, run.job_id, infer=False, patience=run.settings.no_progress_timeout
        )
        self._uploader = Uploader(*job.releasing.noise.mechanism.sent_as(run.spec.codec))
        self._passes, self._evaluated = 0, 0
        self._waiting = {}
        hand_over(table, stream, opened)
        return opened

    @contextlib.contextmanager
    def _session(self) -> Iterator[Stream]:
        """The stream. What goes wrong on it ends it: the job resumes where both sides have a checkpoint."""
        try:
            yield self._check_open()
        except PrivTuneError:
            self.close()
            raise

    def _check_open(self) -> Stream:
        if self._stream is None:
            raise JobConflict("this loop has ended; open the job again to go on from its last checkpoint")
        return self._stream

    def _where(self, records_B: IndexArray) -> tuple[EncodedDataset, IndexArray, int]:
        """The data set of these records, their places in it, and the handle of its first."""
        train, held_out = self.job.train, self.job.validation
        known = len(train) + (len(held_out) if held_out is not None else 0)
        if not len(records_B) or records_B.min() < 0 or records_B.max() >= known:
            raise InvalidInput(f"records are numbered from 0 to {known - 1}")
        if records_B.max() < len(train):
            return train, records_B, 0
        if held_out is None or records_B.min() < len(train):
            raise InvalidInput("a pass takes training records or held-out ones, not both")
        return held_out, records_B - len(train), len(train)

    def _evaluation(self) -> int:
        self._evaluated += 1
        return EVALUATION_BASE + self._evaluated - 1

    def _asked(
        self, data: EncodedDataset, indices: IndexArray, first_handle: int, number: int, *, learning: bool
    ) -> Tensor:
        began, job = time.monotonic(), self.job
        released = job.releasing.perturber.release(data, indices, first_handle=first_handle)
        readout_N, _ = targets(data, indices, released, job.package.readout)
        request = partial(
            self._uploader.forward,
            released,
            readout_N,
            step=self.steps,
            micro_batch=number,
            forward_only=not learning,
        )
        with self._session() as stream:
            stream.send(request())
            answer = stream.output(self.steps, number, partial(request, inline_all=True))
        out_ND = torch.from_numpy(answer.tensor(rows=len(readout_N), width=job.package.hidden_size))
        if learning:
            self._totals.tokens += released.rows()
            self._totals.seconds += time.monotonic() - began
        return out_ND

    def readouts(self, records_B: IndexArray) -> IndexArray:
        """How many of the N read-out positions are of each record."""
        data, indices, _ = self._where(records_B)
        return np.array([count_targets(data, indices[place : place + 1]) for place in range(len(indices))])

    def targets(self, records_B: IndexArray) -> Tensor:
        """targets_N: the class of each record, or each token that a language model's loss counts."""
        data, indices, first = self._where(records_B)
        released = self.job.releasing.perturber.release(data, indices, first_handle=first)
        return targets(data, indices, released, self.job.package.readout)[1]


def check_own_loop(spec: JobSpec) -> None:
    """Raise InvalidInput for a job that sends no gradient, or whose claim depends on which labels the loss uses."""
    for wrong, param, why in (
        (spec.tail, "tail", "with a tail the device trains by itself, and no gradient leaves"),
        (spec.zeroth_order.on, "zeroth_order_epsilon", "slopes are made by the built-in loop"),
        (spec.labels == "shared", "labels", "with shared labels the cloud computes the loss"),
        (spec.train.early_stopping is not None, "early_stopping", "which step is best is for your own loop to say"),
        (
            spec.label_epsilon is not None,
            "label_epsilon",
            "a loss of your own may use the true labels, so nothing could be claimed for them",
        ),
    ):
        if wrong:
            raise InvalidInput(f"a loop of your own can't have {param}: {why}; use `Client.finetune`", param=param)


@contextlib.contextmanager
def own_loop(job_id: str, request: RunRequest, settings: RunSettings, progress: TrainingProgress) -> Iterator[OwnLoop]:
    """A job ready for its owner's loop, its records admitted; it stays resumable unless it is finished.

    Raises:
        InvalidInput: see `check_own_loop`; or the device checks the cloud's work, which the built-in loop does.
        PolicyRefused, DataInvalid and the like, as `privtune.device.training.submit.train`.
    """
    spec = request.spec
    check_own_loop(spec)
    allowed = settings.another_noise or request.another_noise
    settings = replace(settings, local_model=request.local_model, another_noise=allowed)
    if settings.spot_share:
        raise InvalidInput("spot checks need the built-in loop; use `Client.finetune`", param="spot_checks")
    with contextlib.ExitStack() as stack:
        stack.enter_context(job_lock(settings.home, job_id))
        account = stack.enter_context(settings.account(job_id))
        run = RunContext(
            job_id=job_id,
            spec=spec,
            settings=settings,
            link=stack.enter_context(Link(settings.endpoint, account.transcript)),
            account=account,
            progress=progress,
            stop=threading.Event(),
        )
        try:
            with failing(run):
                if settings.policy is not None:
                    settings.policy.check(spec)
                job = stack.enter_context(prepared(run, request.train, request.validation))
                loop = stack.enter_context(contextlib.closing(OwnLoop(run, job)))
        except PolicyRefused as error:
            report_refusal(job_id, error, settings, progress.message)
            raise
        yield loop
