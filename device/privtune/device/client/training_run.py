"""A job that trains in a thread of this process, and what it has reported so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from privtune.device.client.begin import Begun
from privtune.shared.errors import InternalError

if TYPE_CHECKING:
    from privtune.device.training.job import RunResult
    from privtune.device.training.progress import EvalInfo, StartInfo, StepInfo

Kind = Literal["message", "started", "step", "evaluated", "finished"]


@dataclass(frozen=True)
class JobEvent:
    """What happened, by the names of `privtune finetune --json`.

    info: a line for `message`, StartInfo for `started`, StepInfo for `step`, EvalInfo for `evaluated`, RunResult for
        `finished`.
    """

    kind: Kind
    info: str | StartInfo | StepInfo | EvalInfo | RunResult


class TrainingRun:
    """Trains a job from its creation on; any thread may follow it."""

    def __init__(self, begun: Begun) -> None:
        self.begun = begun
        self._events: list[JobEvent] = []
        self._news = threading.Condition()
        self._stop = threading.Event()
        self._result: RunResult | None = None
        self._failure: BaseException | None = None
        self._over = False
        # A daemon, so that the end of the program is not the end of training: the client pauses it first.
        self._thread = threading.Thread(target=self._train, name=f"train-{begun.job_id}", daemon=True)
        self._thread.start()

    @property
    def active(self) -> bool:
        """Whether it still trains."""
        return not self._over

    @property
    def failure(self) -> BaseException | None:
        """Why it ended early."""
        return self._failure

    def latest(self, kind: Kind) -> JobEvent | None:
        """The last event of a kind."""
        with self._news:
            return next((event for event in reversed(self._events) if event.kind == kind), None)

    def events(self, deadline: float | None = None) -> Iterator[JobEvent]:
        """All events from the first on, as they come, until the run ends.

        deadline: on the monotonic clock. Raises TimeoutError when it has passed.
        """
        seen = 0
        while True:
            with self._news:
                while seen == len(self._events) and not self._over:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError(f"job {self.begun.job_id} still trains")
                    self._news.wait(left)
                fresh = self._events[seen:]
            if not fresh:
                return
            seen += len(fresh)
            yield from fresh

    def pause(self) -> None:
        """Pause after the present step, with a checkpoint on both sides."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout)

    def result(self) -> RunResult:
        """Wait for the end. Raises what ended the run early."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if self._result is None:
            raise InternalError("a run ended without a result")
        return self._result

    def started(self, info: StartInfo) -> None:
        """See privtune.device.training.progress."""
        self._add(JobEvent("started", info))

    def step(self, info: StepInfo) -> None:
        """See privtune.device.training.progress."""
        self._add(JobEvent("step", info))

    def evaluated(self, info: EvalInfo) -> None:
        """See privtune.device.training.progress."""
        self._add(JobEvent("evaluated", info))

    def message(self, text: str) -> None:
        """See privtune.device.training.progress."""
        self._add(JobEvent("message", text))

    def _add(self, event: JobEvent) -> None:
        with self._news:
            self._events.append(event)
            self._news.notify_all()

    def _train(self) -> None:
        try:
            self._result = self.begun.train(self, self._stop)
            self._add(JobEvent("finished", self._result))
        except BaseException as error:  # whoever waits gets it
            self._failure = error
        with self._news:
            self._over = True
            self._news.notify_all()
