"""How one job's row changes: under the write lock, with an event for its owner, and with a wake-up after the commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from privtune.cloud.db.store import JobRow, Store
from privtune.cloud.jobs.job_rows import MAX_MESSAGE, append_event, find_job, now, status_of
from privtune.cloud.jobs.live import LiveState
from privtune.cloud.jobs.notify import Notifier
from privtune.cloud.jobs.states import FINAL, Level, Phase, Request, Status, check_move


class Changes:
    """Changes of single jobs; keeps the live state in step with the database.

    when_ended: called with the id of a job that has ended, after the commit, on the thread that ended it.
    """

    def __init__(self, store: Store, live: LiveState, notifier: Notifier) -> None:
        self._store, self._live, self._notifier = store, live, notifier
        self.when_ended: Callable[[str], None] = lambda job_id: None

    @contextmanager
    def begin(self, job_id: str, owner: str | None = None) -> Iterator[tuple[Session, JobRow]]:
        """A job's row in a write transaction. Raises JobNotFound; `owner` None finds every job."""
        with self._store.write() as session:
            row = find_job(session, job_id, owner, lock=True)
            yield session, row
        self._notifier.publish(job_id)
        if row.status in FINAL:
            self.when_ended(job_id)

    def move(
        self,
        session: Session,
        row: JobRow,
        status: Status,
        phase: Phase,
        reason: str,
        *,
        level: Level = "info",
        message: str | None = None,
    ) -> None:
        """Change a job's state. `message` is the event's text in place of the usual one. Raises JobConflict."""
        check_move(row.id, status_of(row), status)
        row.status, row.phase, row.reason = status, phase, reason[:MAX_MESSAGE]
        if status != "running":
            row.requested = None
            self._live.drop_request(row.id)
        if status in FINAL:
            row.finished_at = now()
            row.held = False
        self.store_progress(row)
        data = {"status": status, "phase": phase}
        append_event(session, row, level, message or f"The job is {status}: {reason}.", data)

    def ask(self, session: Session, row: JobRow, request: Request | None, phase: Phase, reason: str) -> None:
        """Ask a running job for something at its next step boundary, or withdraw that with None."""
        if row.requested == request:
            return
        row.requested, row.phase, row.reason = request, phase, reason
        self._live.set_request(row.id, request)
        message = f"The job is {reason}." if request else "The pause was withdrawn; training continues."
        append_event(session, row, "info", message, {"phase": phase})

    def store_progress(self, row: JobRow) -> None:
        """Copy a job's progress from memory into its row."""
        progress = self._live.progress(row.id)
        if progress is not None:
            row.progress = progress.as_dict()
        if row.status in FINAL:
            self._live.drop_progress(row.id)
