"""What a running job tells whoever watches it: the terminal, a log, a test. Nothing of it is sent to the cloud."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from privtune.device.privacy.statements import LabelStatement, Statement


@dataclass(frozen=True, kw_only=True)
class StartInfo:
    """Known before the first step. label_statement: where labels are randomised; tail: blocks that train here."""

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
    tail: int = 0


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """After each optimiser step. Bytes and tokens are sums over the run; `loss` is the step's mean.

    grad_norm: of what is trained (in the cloud, or here with a tail), before clipping.
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
    """After each evaluation on held-out records, through the same noise."""

    step: int
    metrics: dict[str, float]


class Progress(Protocol):
    """A watcher of a run."""

    def started(self, info: StartInfo) -> None:
        """The job is about to train."""

    def step(self, info: StepInfo) -> None:
        """An optimiser step was applied on both sides."""

    def evaluated(self, info: EvalInfo) -> None:
        """An evaluation was finished."""

    def message(self, text: str) -> None:
        """Something a person should know: a download, a reconnect."""
