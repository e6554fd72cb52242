"""The training loop of a job, as the device sees it: one flat loop over optimiser steps.

    release -> send -> (cloud: top) -> output -> head, loss -> gradient -> (cloud: backward, optimiser) -> next step
    with a tail:                    -> states -> tail, head, loss, backward, optimiser here            -> next step

Up to `in_flight` micro-batches are under way at once, also across the step boundary: the device perturbs and uploads
the next one while the cloud computes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from privtune.device.data.encode import EncodedDataset
from privtune.device.link.rpc import Stream
from privtune.device.model.final_states import FinalStates
from privtune.device.model.objectives import count_targets, targets
from privtune.device.release.perturber import Uploader
from privtune.device.session.scoring import Scorer
from privtune.device.session.window import PendingBatch, SendAhead
from privtune.device.training.prepare import Prepared, RunContext
from privtune.device.training.progress import EvalInfo, StepInfo
from privtune.device.training.spot_checks import SpotChecks
from privtune.device.training.stopping import has_ended
from privtune.shared.errors import JobCancelled, JobPaused
from privtune.shared.tracing import span
from privtune.shared.wire import GRADIENT, STEP, Message, tensor_message
from privtune.split.v1 import split_pb2 as pb

# Evaluation micro-batches are numbered from here, so that their answers never meet those of training.
EVALUATION_BASE = 1 << 20


@dataclass(kw_only=True)
class Totals:
    """What a run has done so far, over all its sessions in this process. metrics: of the last finished session."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingBatch(PendingBatch):
    """A micro-batch with its N targets.

    items: targets of the whole step.
    last: the step has no more micro-batches.
    """

    targets_N: Tensor
    items: int
    last: bool


@dataclass(frozen=True, kw_only=True)
class TrainingSession:
    """One stream of a job.

    states: reads the answers, with the head and the tail that train here.
    uploader: remembers which records the cloud holds in this session.
    totals: counted on by each step.
    checks: computes a share of the cloud's work here as well.
    """

    run: RunContext
    job: Prepared
    stream: Stream
    states: FinalStates
    uploader: Uploader
    totals: Totals
    checks: SpotChecks


def train_steps(session: TrainingSession, first_step: int) -> dict[str, float]:
    """Train to the end of the job, or until early stopping; the metrics of the last evaluation, empty without one.

    Raises JobPaused or JobCancelled at a step boundary, everything checkpointed.
    """
    run, job, stream, head = session.run, session.job, session.stream, session.states.head
    total, spec = job.plan.total_steps, run.spec.train
    window = training_window(session, first_step)
    batches, metrics = iter(window), dict[str, float]()
    for step in range(first_step, total):
        began, loss, tokens = time.monotonic(), 0.0, 0
        show = session.checks.begins(step)
        with span("step", step=step):
            for batch in batches:
                loss += _learn(session, window, batch)
                tokens += batch.released.rows()
                if batch.last:
                    break
            control = step_control(session, step)
            control.show = show
            stream.send(Message(kind=STEP, step=step, control=control))
            if not control.pause:
                window.fill()
            norm = head.step()
            report = stream.expect(step, 0, STEP).report or pb.StepReport()
            session.checks.stepped(step, report)
            if report.checkpointed:
                head.save(run.folder.checkpoints, step + 1, candidate=control.candidate, candidates=spec.candidates)
        loss = report.shared_loss if run.spec.labels == "shared" else loss
        count_step(session, step, time.monotonic() - began, tokens, loss, norm if run.spec.tail else report.grad_norm)
        stop_if_asked(report, step, total)
        if job.validation is not None and job.plan.evaluates_after(step + 1):
            metrics = evaluate_session(session, job.validation, step + 1)
            if has_ended(run.folder.evaluations(step + 1), spec):
                break
    return metrics


def training_window(session: TrainingSession, first_step: int) -> SendAhead[TrainingBatch]:
    """All micro-batches from a step on, sent ahead; each is released when its turn comes."""
    request = partial(_request, session)
    return SendAhead(session.stream, _coming(session, first_step), request, in_flight=session.run.spec.train.in_flight)


def step_control(session: TrainingSession, step: int) -> pb.StepControl:
    """What both sides do at the end of a step: checkpoint, pause, keep the state since it may be the best."""
    run, job = session.run, session.job
    spec, pausing = run.spec.train, run.stop.is_set()
    evaluates = job.validation is not None and job.plan.evaluates_after(step + 1)
    candidate = evaluates and spec.early_stopping is not None
    usual = (step + 1) % spec.checkpoint_every == 0 or step + 1 == job.plan.total_steps
    return pb.StepControl(checkpoint=pausing or candidate or usual, pause=pausing, candidate=candidate)


def stop_if_asked(report: pb.StepReport, step: int, total: int) -> None:
    """Raises JobPaused or JobCancelled where the cloud says so after a step."""
    if report.outcome == pb.STEP_OUTCOME_CANCEL:
        raise JobCancelled(f"the job was cancelled after step {step + 1}")
    if report.outcome == pb.STEP_OUTCOME_PAUSE and step + 1 < total:
        raise JobPaused(f"paused after step {step + 1}; the checkpoint is written on both sides")


def _coming(session: TrainingSession, first_step: int) -> Iterator[TrainingBatch]:
    job, states = session.job, session.states
    for step in range(first_step, job.plan.total_steps):
        batches = job.plan.micro_batches(step)
        items = sum(count_targets(job.train, indices) for indices in batches)
        for number, indices in enumerate(batches):
            released = states.perturber.release(job.train, indices)
            readout_N, targets_N = targets(job.train, indices, released, job.package.readout)
            yield TrainingBatch(
                step=step,
                number=number,
                indices=indices,
                released=released,
                readout_N=readout_N,
                targets_N=targets_N,
                items=items,
                last=number == len(batches) - 1,
                asks=states.wanted(job.train, indices),
            )


def _request(session: TrainingSession, batch: TrainingBatch, /, *, inline_all: bool = False) -> Message:
    """The message of a micro-batch; its weight is its part of the step's mean loss."""
    spec = session.run.spec
    return session.uploader.forward(
        batch.released,
        session.states.asked(batch.readout_N),
        step=batch.step,
        micro_batch=batch.number,
        last=batch.last,
        forward_only=spec.tail > 0,
        inline_all=inline_all,
        shared_labels=batch.targets_N.tolist() if spec.labels == "shared" else (),
        weight=0.0 if spec.tail else len(batch.targets_N) / batch.items,
    )


def _learn(session: TrainingSession, window: SendAhead[TrainingBatch], batch: TrainingBatch) -> float:
    """Output, loss and gradient of one micro-batch; with shared labels the cloud does all three and says so."""
    spec, states = session.run.spec, session.states
    answer = window.answer(batch)
    if spec.labels == "shared":
        return 0.0
    place = {"step": batch.step, "micro_batch": batch.number, "items": batch.items}
    if answer is None or spec.tail:
        inputs = states.states(session.job.train, batch.indices, batch.released, answer)
        if answer is not None:
            session.checks.states(batch, answer)
        return states.head.learn(inputs, torch.from_numpy(batch.readout_N), batch.targets_N, **place)
    loss, gradient_ND = states.head.loss(_output(session, batch, answer), batch.targets_N, **place)
    gradient = tensor_message(GRADIENT, batch.step, batch.number, gradient_ND.numpy(), spec.codec)
    session.checks.answered(batch, answer, gradient)
    session.stream.send(gradient)
    return loss


def _output(session: TrainingSession, batch: TrainingBatch, answer: Message) -> Tensor:
    """out_ND as the cloud sent it. Raises FrameCorrupt for another shape than was asked for."""
    return torch.from_numpy(answer.tensor(rows=len(batch.readout_N), width=session.job.package.hidden_size))


def evaluate_session(session: TrainingSession, data: EncodedDataset, step: int) -> dict[str, float]:
    """Score a held-out data set through the same noise, with the adapter as it is now, and keep the figures."""
    scorer = Scorer(
        stream=session.stream,
        uploader=session.uploader,
        states=session.states,
        readout=session.job.package.readout,
        batch_size=session.run.spec.train.batch_size,
        in_flight=session.run.spec.train.in_flight,
    )
    metrics = scorer.score(data, step=step, first_number=EVALUATION_BASE, first_handle=len(session.job.train))
    session.run.folder.keep_evaluation(step, metrics)
    session.run.progress.evaluated(EvalInfo(step=step, metrics=metrics))
    return metrics


def count_step(session: TrainingSession, step: int, seconds: float, tokens: int, loss: float, grad_norm: float) -> None:
    """Add a step to the totals and report it."""
    totals, plan = session.totals, session.job.plan
    totals.steps += 1
    totals.tokens += tokens
    totals.seconds += seconds
    session.run.progress.step(
        StepInfo(
            step=step + 1,
            total_steps=plan.total_steps,
            epoch=step // plan.steps_per_epoch + 1,
            loss=loss,
            grad_norm=grad_norm,
            tokens=totals.tokens,
            tokens_per_second=totals.tokens / max(totals.seconds, 1e-9),
            bytes_up=totals.bytes_up + session.stream.bytes_up,
            bytes_down=totals.bytes_down + session.stream.bytes_down,
            seconds_left=(plan.total_steps - step - 1) * totals.seconds / totals.steps,
        )
    )
