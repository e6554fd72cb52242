"""How one job's row changes: under the write lock, with an event for its owner, and with a wake-up after the commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from sqlalchemy import delete
from sqlalchemy.orm import Session

from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import CurveRow, JobRow, LeaseRow
from privtune.cloud.jobs.job_rows import MAX_MESSAGE, append_event, find_job, now, status_of
from privtune.cloud.jobs.lease_rows import check_token
from privtune.cloud.jobs.live import LiveState
from privtune.cloud.jobs.notify import Notifier
from privtune.cloud.jobs.states import FINAL, Level, Phase, Request, Status, check_move


class Changes:
    """Changes of single jobs; keeps the live state in step with the database.

    when_ended: called with the id of a job that has ended or was taken from its device, and its newest session epoch
        then, after the commit, on the thread that did it.
    """

    def __init__(self, store: Store, live: LiveState, notifier: Notifier) -> None:
        self._store, self._live, self._notifier = store, live, notifier
        self.when_ended: Callable[[str, int], None] = lambda job_id, epoch: None

    @contextmanager
    def begin(
        self, job_id: str, owner: str | None = None, *, token: int | None = None
    ) -> Iterator[tuple[Session, JobRow]]:
        """A job's row in a write transaction; `owner` None finds every job.

        token: of the session that reports the change.

        Raises JobNotFound, SessionSuperseded.
        """
        with self._store.write() as session:
            row = find_job(session, job_id, owner)
            if token is not None:
                check_token(session, row, token)
            yield session, row
        self._notifier.publish(job_id)
        if row.status in FINAL:
            self.when_ended(job_id, row.session_epoch)

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
            self._live.drop_lease(row.id)
        if status in FINAL:
            row.finished_at = now()
            row.held = False
            session.execute(delete(LeaseRow).where(LeaseRow.job_id == row.id))
        self.store_progress(session, row)
        data = {"status": status, "phase": phase}
        append_event(session, row, level, message or f"The job is {status}: {reason}.", data)

    def lost(self, session: Session, row: JobRow, reason: str) -> None:
        """A running job has no stream: what its owner had asked for takes effect, else it waits for its device.

        A job that is not running stays as it is.
        """
        if row.status != "running":
            return
        if row.requested == "cancel":
            self.move(session, row, "cancelled", "cancelled", "cancelled by its owner")
        elif row.requested == "pause":
            row.held = True
            self.move(session, row, "paused", "held", "paused by its owner; resume it to continue")
        else:
            self.move(session, row, "paused", "waiting_for_device", reason, level="warn")

    def fail(self, session: Session, row: JobRow, code: str, message: str) -> None:
        """End the job as failed. `code` is a reason of `privtune.shared.errors`; `message` is public."""
        row.error_code, row.error_message = code[:64], message[:MAX_MESSAGE]
        self.move(session, row, "failed", "failed", message[:MAX_MESSAGE], level="error")

    def ask(self, session: Session, row: JobRow, request: Request | None, phase: Phase, reason: str) -> None:
        """Ask a running job for something at its next step boundary, or withdraw that with None."""
        if row.requested == request:
            return
        row.requested, row.phase, row.reason = request, phase, reason
        self._live.set_request(row.id, request)
        message = f"The job is {reason}." if request else "The pause was withdrawn; training continues."
        append_event(session, row, "info", message, {"phase": phase})

    def store_progress(self, session: Session, row: JobRow) -> None:
        """Copy a job's progress and its curve from memory into the database."""
        progress = self._live.progress(row.id)
        if progress is not None:
            row.progress = progress.as_dict()
        if (curve := self._live.curve(row.id)) is not None:
            points, said = curve
            session.merge(CurveRow(job_id=row.id, points=[asdict(point) for point in points], said=said))
        if row.status in FINAL:
            self._live.drop_progress(row.id)
