"""What a running job reports to whoever watches it: the terminal, a log, a test. None of it is sent to the cloud."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from privtune.device.privacy.statements import LabelStatement, SlopeStatement, Statement
from privtune.device.surrogates.replacement import Replacement


@dataclass(frozen=True, kw_only=True)
class StartInfo:
    """Known before the first step of a session.

    job_id: the job.
    statement: what may be claimed for its releases.
    total_steps: optimiser steps of the whole job.
    start_step: where this session resumes, 0 at the beginning.
    records: training records.
    validation_records: held-out records.
    truncated: training records cut at the job's max_length.
    dropped: training records left out because nothing to predict was left.
    device_parameters: trained here.
    cloud_parameters: trained in the cloud, to the nearest thousand.
    label_statement: what may be claimed for randomised labels; None where labels are as they are.
    slopes: what may be claimed for the slopes of a zeroth-order job; None where gradients train.
    tail: blocks that train here.
    replacement: what surrogates did in the records; None without surrogates.
    session_epoch: of the session that begins.
    verdict: what the audit of the data found; "" without one.
    """

    job_id: str
    statement: Statement
    total_steps: int
    start_step: int
    records: int
    validation_records: int
    truncated: int
    dropped: int
    device_parameters: int
    cloud_parameters: int
    label_statement: LabelStatement | None = None
    slopes: SlopeStatement | None = None
    tail: int = 0
    replacement: Replacement | None = None
    session_epoch: int = 0
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """After each optimiser step.

    step: steps done.
    total_steps: of the whole job.
    epoch: from 1.
    loss: the step's mean.
    grad_norm: of what is trained (in the cloud, or here with a tail), before clipping.
    tokens, bytes_up, bytes_down: sums over the run.
    tokens_per_second: over the run.
    seconds_left: until the last step, at the run's mean speed.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    bytes_up: int
    bytes_down: int
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class EvalInfo:
    """After each evaluation on held-out records, through the same noise.

    step: steps done.
    metrics: see `privtune.device.model.objectives.Score.metrics`.
    """

    step: int
    metrics: dict[str, float]


class TrainingProgress(Protocol):
    """A watcher of a run."""

    def started(self, info: StartInfo) -> None:
        """A session begins to train."""

    def step(self, info: StepInfo) -> None:
        """An optimiser step was applied on both sides."""

    def evaluated(self, info: EvalInfo) -> None:
        """An evaluation is finished."""

    def message(self, text: str) -> None:
        """A line for a person: a download, a reconnect, a warning."""
