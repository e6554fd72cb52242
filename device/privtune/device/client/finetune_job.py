"""`FineTuneJob`: a job of this owner, followed and steered from Python."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from privtune.device.client import notebook
from privtune.device.client.access import Access
from privtune.device.client.begin import Say
from privtune.device.client.job_model import JobModel
from privtune.device.client.training_run import JobEvent, TrainingRun
from privtune.shared.errors import JobConflict

if TYPE_CHECKING:
    from privtune.device.client.training_screen import Screen
    from privtune.device.training.job import RunResult


class FineTuneJob:
    """A job: `Client.finetune` and `Client.resume` return one that trains here, `Client.job` one that may be anywhere.

    id: the job's id.
    """

    def __init__(self, job_id: str, access: Access, say: Say, run: TrainingRun | None = None) -> None:
        self.id, self._access, self._say, self._run = job_id, access, say, run

    @property
    def model(self) -> JobModel:
        """The tuned model, in the newest state that this device holds; it can be used while the job still trains."""
        return JobModel(self.id, self._access, self._say)

    @property
    def status(self) -> str:
        """What the cloud says: queued, running, paused, succeeded, failed or cancelled. Raises JobNotFound."""
        with self._access.control() as control:
            return str(control.get_job(self.id)["status"])

    def wait(self, timeout: float | None = None, *, progress: bool = True) -> RunResult:
        """Wait until the job has ended; its figures. Ctrl-C, or a notebook's stop, pauses it after the present step.

        Args:
            timeout: seconds; None: as long as it takes.
            progress: show how it goes: a bar on a terminal and in a notebook, lines elsewhere.

        Raises JobPaused (the same `finetune` again resumes it), JobCancelled, TimeoutError, and as `privtune finetune`
        otherwise; JobConflict for a job that does not train in this process.
        """
        run = self._running()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if not progress:
                for _ in run.events(deadline):
                    pass
            elif notebook.present():
                self._show_in_notebook(run, deadline)
            else:
                self._show(run, deadline)
        except KeyboardInterrupt:
            run.pause()
        return run.result()

    def events(self) -> Iterator[JobEvent]:
        """What the run in this process reports, from its first event on, until it ends; any number of times.

        Raises at the end what ended the run early, and JobConflict for a job that does not train in this process.
        """
        run = self._running()
        yield from run.events()
        run.result()

    def pause(self) -> None:
        """Pause a job that trains here after its present step; one that trains elsewhere is held until it resumes."""
        if self._run is not None:
            self._run.pause()
            return
        with self._access.control() as control:
            control.pause(self.id)

    def cancel(self) -> None:
        """End the job at the next step. What was trained up to its last checkpoint is kept."""
        with self._access.control() as control:
            control.cancel(self.id)

    def _running(self) -> TrainingRun:
        if self._run is None:
            raise JobConflict(
                f"Job {self.id} does not train in this process: `status` says how it stands, `Client.resume` trains it "
                "here."
            )
        return self._run

    def _show(self, run: TrainingRun, deadline: float | None) -> None:
        from privtune.device.client.training_screen import make_screen

        with make_screen(as_json=False) as screen:
            for event in run.events(deadline):
                _to_screen(screen, event)

    def _show_in_notebook(self, run: TrainingRun, deadline: float | None) -> None:
        with notebook.shown(self) as refresh:
            for _ in run.events(deadline):
                refresh()

    def __repr__(self) -> str:
        return f"FineTuneJob({self.id!r})"

    def _repr_html_(self) -> str:
        return notebook.job_html(self.id, self._run)


def _to_screen(screen: Screen, event: JobEvent) -> None:
    info: Any = event.info
    getattr(screen, event.kind)(info)
