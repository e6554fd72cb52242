"""What a job's progress was over its steps: few points, however long it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from privtune.cloud.jobs.states import JobProgress

MAX_POINTS = 240
_COUNTED = ("tokens", "bytes_up", "bytes_down")


@dataclass(frozen=True, kw_only=True)
class ProgressPoint:
    """A job after a step. What is counted is over all sessions of the job.

    at: seconds since 1970.
    tokens: released rows that came, evaluations included.
    bytes_up, bytes_down: on the stream.
    loss, grad_norm: of the step; None where the cloud does not know it.
    held_out_loss, accuracy: on held-out records, where the owner shares them.
    """

    at: float
    step: int
    tokens: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    loss: float | None = None
    grad_norm: float | None = None
    held_out_loss: float | None = None
    accuracy: float | None = None


class ProgressCurve:
    """The points of one job. Once there are MAX_POINTS, every second one goes and new ones come half as often.

    stored: points as the database has them.
    said: what the device says of the job, by `statement` and `verdict`; empty where its owner does not share that.
    """

    def __init__(
        self,
        stored: Sequence[dict[str, Any]] = (),
        said: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.said = dict(said or {})
        self._clock = clock
        self.points = [ProgressPoint(**one) for one in stored]
        self._counted = self.points[-1] if self.points else ProgressPoint(at=0, step=0)
        self._session = JobProgress()  # as the present session last counted
        steps = self.points[-1].step - self.points[0].step if self.points else 0
        self._apart = max(1, steps // max(1, len(self.points)))  # steps between points

    def begins(self) -> None:
        """A new session counts from zero."""
        self._session = JobProgress()

    def add(self, progress: JobProgress) -> None:
        """Add what a session reports after a step. Points of steps that a resume undid go."""
        while self.points and self.points[-1].step >= progress.step:
            self.points.pop()
        early = self.points and progress.step - self.points[-1].step < self._apart
        if early and progress.step < progress.total_steps:
            return
        sums = {name: getattr(self._counted, name) + self._more(progress, name) for name in _COUNTED}
        point = ProgressPoint(at=round(self._clock(), 3), step=progress.step, **sums)
        self._counted = replace(point, loss=progress.loss, grad_norm=progress.grad_norm)
        self._session = progress
        self.points.append(self._counted)
        if len(self.points) >= MAX_POINTS:
            del self.points[-2::-2]  # the newest stays
            self._apart *= 2

    def share(self, step: int, figures: Mapping[str, float], said: Mapping[str, str]) -> None:
        """Add what the device shares to the newest point that is not after the step."""
        self.said |= said
        for place in range(len(self.points) - 1, -1, -1):
            if self.points[place].step <= step:
                self.points[place] = replace(self.points[place], **figures)  # type: ignore[arg-type]
                return

    def _more(self, progress: JobProgress, name: str) -> int:
        return (getattr(progress, name) or 0) - (getattr(self._session, name) or 0)
