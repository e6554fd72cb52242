"""The training loop of a zeroth-order job: the cloud's blocks learn from one noised number a step, no gradient leaves.

    release -> send -> (cloud: top, moved forwards and backwards) -> both outputs -> slopes of the records' losses
         -> clip, sum, noise, keep -> STEP with the slope -> (cloud: step along its direction) -> next step

The owner's head trains beside, by gradients that stay here, on the mean of both outputs; no slope depends on it
(`privtune.device.model.slope_head`).
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from privtune.device.model.slope_head import SlopeHead
from privtune.device.release.slope_store import SlopeStore
from privtune.device.session.window import SendAhead
from privtune.device.training.loop import (
    TrainingBatch,
    TrainingSession,
    count_step,
    evaluate_session,
    step_control,
    stop_if_asked,
    training_window,
)
from privtune.device.training.stopping import has_ended
from privtune.shared.errors import InternalError, JobConflict
from privtune.shared.tracing import span
from privtune.shared.wire import STEP, Message
from privtune.split.v1 import split_pb2 as pb


def train_by_slopes(session: TrainingSession, first_step: int) -> dict[str, float]:
    """Train to the end of the job, or until early stopping; the metrics of the last evaluation, empty without one.

    Raises as `train_steps`, and JobConflict where slopes that were sent are missing.
    """
    run, job, stream, head = session.run, session.job, session.stream, session.states.head
    if job.slopes is None:
        raise InternalError("a zeroth-order job was prepared without its slopes")
    total, spec, store = job.plan.total_steps, run.spec.train, job.slopes.store
    slope_head = SlopeHead(job.package.head, run.spec, total, _sent(store, first_step))
    window = training_window(session, first_step)
    batches, metrics = iter(window), dict[str, float]()
    for step in range(first_step, total):
        began, loss, tokens = time.monotonic(), 0.0, 0
        slopes: list[Tensor] = []
        with span("step", step=step):
            for batch in batches:
                out_2ND = _both(session, window, batch)
                slopes.append(slope_head.slopes(out_2ND, batch.targets_N))
                place = {"step": step, "micro_batch": batch.number, "items": batch.items}
                loss += head.loss(torch.stack(out_2ND.chunk(2)).mean(dim=0), batch.targets_N, **place)[0]
                tokens += batch.released.rows()
                if batch.last:
                    break
            slope = job.slopes.released(step, torch.cat(slopes))
            control = step_control(session, step)
            control.slope = slope
            stream.send(Message(kind=STEP, step=step, control=control))
            slope_head.learn(slope)
            if not control.pause:
                window.fill()
            head.step()
            report = stream.expect(step, 0, STEP).report or pb.StepReport()
            if report.checkpointed:
                head.save(run.folder.checkpoints, step + 1, candidate=control.candidate, candidates=spec.candidates)
        count_step(session, step, time.monotonic() - began, tokens, loss, report.grad_norm)
        stop_if_asked(report, step, total)
        if job.validation is not None and job.plan.evaluates_after(step + 1):
            metrics = evaluate_session(session, job.validation, step + 1)
            if has_ended(run.folder.evaluations(step + 1), spec):
                break
    return metrics


def _both(session: TrainingSession, window: SendAhead[TrainingBatch], batch: TrainingBatch) -> Tensor:
    """out_2ND as the cloud sent it. Raises FrameCorrupt for another shape than was asked for."""
    answer = window.answer(batch)
    if answer is None:
        raise InternalError("every micro-batch of a zeroth-order job is answered by the cloud")
    return torch.from_numpy(answer.tensor(rows=2 * len(batch.readout_N), width=session.job.package.hidden_size))


def _sent(store: SlopeStore, steps: int) -> list[float]:
    slopes = store.first(steps)
    if len(slopes) < steps:
        raise JobConflict(f"{store.path} lacks slopes that this job has sent; restore it, or start a new job (--new)")
    return slopes
