"""Deletes jobs that have ended: their rows at once, then what compute holds in memory, then their files.

The rows go in one transaction, which also enters the deletion. From then on the job is unknown everywhere. A crash
before the files are gone leaves the entry, and the next `sweep` completes it. The entry keeps the receipt, so that a
repeated request gets the same answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from privtune.cloud.audit_log.record import record
from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import CheckpointRow, DeletionRow, EventRow, IdempotencyRow, JobRow
from privtune.cloud.jobs.job_files import JobFiles, Kept
from privtune.cloud.jobs.job_rows import find_job, forget, job_view, now
from privtune.cloud.jobs.states import FINAL
from privtune.shared.errors import JobConflict, JobNotFound, PrivTuneError

log = logging.getLogger(__name__)

MAX_RECEIPTS = 1000  # of an owner; the oldest go first
_ROWS = {"events": EventRow, "checkpoint rows": CheckpointRow, "idempotency keys": IdempotencyRow}
_AT_ONCE = 100  # jobs of a sweep, each in a transaction of its own
STAYS = {
    "the receipt": "so that a repeated request gets the same answer; it holds ids, counts and sizes",
    "bottom packages, taught blocks": "parts of the public model, which are not the job's",
    "log lines, backups": "they are the operator's; the log names the job's id and settings, and nothing of its data",
}


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a deletion removed.

    model: the tuned model's name; None where the job had none.
    deleted_at: seconds since 1970.
    why: "asked" by its owner, or "age".
    went: by kind.
    stays: what deliberately stays, and why.
    """

    job_id: str
    model: str | None
    deleted_at: int
    why: str
    went: dict[str, Kept]
    stays: dict[str, str]


class Deletions:
    """The service. Thread-safe. files: None where jobs leave none.

    when_deleted: called with a job's id once its rows are gone and before its files are; it frees what is in memory.
    """

    def __init__(self, store: Store, files: JobFiles | None = None) -> None:
        self._store, self._files = store, files
        self.when_deleted: Callable[[str], None] = lambda job_id: None

    def delete(self, job_id: str, owner: str) -> Receipt:
        """Delete a job that has ended. Repeatable: the receipt stays the same.

        Raises JobNotFound, also for another owner's; JobConflict for a job that has not ended; StorageFull where its
        files can't be removed now: the job is gone, and a later sweep or request removes them.
        """
        with self._store.write() as session:
            try:
                self._forget(session, find_job(session, job_id, owner), "asked")
            except JobNotFound:
                if _find(session, job_id, owner) is None:
                    raise
        receipt = self.receipt(job_id, owner)
        self._finish(job_id)
        return receipt

    def receipt(self, job_id: str, owner: str) -> Receipt:
        """The receipt of a job that was deleted. Raises JobNotFound."""
        with self._store.read() as session:
            row = _find(session, job_id, owner)
        if row is None or row.receipt is None:
            raise JobNotFound(f"There is no job {job_id[:64]!r} for this API key.")
        facts: dict[str, Any] = dict(row.receipt)
        return Receipt(**facts | {"went": {kind: Kept(**kept) for kind, kept in facts["went"].items()}})

    def sweep(self, ended_before: int | None = None) -> int:
        """Complete what a crash interrupted, then delete jobs that ended before this time; returns how many.

        ended_before: seconds since 1970; None: no job is deleted for its age.
        """
        for job_id in self._unfinished():
            try:
                self._finish(job_id)
            except PrivTuneError as error:  # the others must not wait for one folder
                log.warning("a deletion is still open", extra={"job": job_id, "reason": error.message})
        count = 0
        while ended_before is not None and (old := self._old(ended_before)):
            for job_id in old:
                self._delete_for_age(job_id)
            count += len(old)
        self._forget_copies()
        return count

    def drop_events(self, ended_before: int) -> None:
        """Delete the events of jobs that ended before this time (seconds since 1970); jobs and models stay."""
        old = select(JobRow.id).where(JobRow.status.in_(FINAL), JobRow.finished_at < ended_before)
        query = select(EventRow.job_id).where(EventRow.job_id.in_(old)).distinct().limit(_AT_ONCE)
        while True:
            with self._store.read() as session:
                jobs = list(session.scalars(query))
            if not jobs:
                return
            with self._store.write() as session:
                session.execute(delete(EventRow).where(EventRow.job_id.in_(jobs)))

    def drop_unnamed(self, before: float) -> int:
        """Remove what interrupted writes of artifacts have left; see `ArtifactStore.drop_unnamed`."""
        return 0 if self._files is None else self._files.store.drop_unnamed(before)

    def _forget_copies(self) -> None:
        """Of jobs that have ended, or that another process on this database has deleted."""
        if self._files is not None and (here := self._files.copies()):
            with self._store.read() as session:
                unfinished = set(session.scalars(select(JobRow.id).where(JobRow.status.not_in(FINAL))))
            self._files.forget_copies(here - unfinished)

    def _delete_for_age(self, job_id: str) -> None:
        with self._store.write() as session:
            row = session.scalar(select(JobRow).where(JobRow.id == job_id))
            if row is not None:
                self._forget(session, row, "age")
        try:
            self._finish(job_id)
        except PrivTuneError as error:
            log.warning("a deletion is still open", extra={"job": job_id, "reason": error.message})

    def _forget(self, session: Session, row: JobRow, why: str) -> None:
        if row.status not in FINAL:
            raise JobConflict(f"Job {row.id} is {row.status}. Cancel it first: POST …/{row.id}/cancel.")
        rows = {kind: _count(session, table, row.id) for kind, table in _ROWS.items()}
        went = {"job": Kept(count=1)} | {kind: Kept(count=count) for kind, count in rows.items() if count}
        receipt = Receipt(
            job_id=row.id,
            model=job_view(row, None).tuned_model,
            deleted_at=now(),
            why=why,
            went=went | (self._files.measure(row.id) if self._files is not None else {}),
            stays=STAYS,
        )
        forget(session, row, asdict(receipt))
        _drop_old_receipts(session, row.owner)
        record(session, "job.deleted", owner=row.owner, target=row.id, model=receipt.model, why=why)

    def _finish(self, job_id: str) -> None:
        """The part after the rows, as often as it takes."""
        mine = select(DeletionRow).where(DeletionRow.job_id == job_id, DeletionRow.finished_at.is_(None))
        with self._store.read() as session:
            if session.scalar(mine) is None:
                return
        self.when_deleted(job_id)
        if self._files is not None:
            self._files.remove(job_id)
        with self._store.write() as session:
            row = session.scalar(mine)
            if row is not None and row.receipt is None:
                session.delete(row)
            elif row is not None:
                row.finished_at = now()

    def _unfinished(self) -> list[str]:
        with self._store.read() as session:
            return list(session.scalars(select(DeletionRow.job_id).where(DeletionRow.finished_at.is_(None))))

    def _old(self, before: int) -> list[str]:
        with self._store.read() as session:
            query = select(JobRow.id).where(JobRow.status.in_(FINAL), JobRow.finished_at < before)
            return list(session.scalars(query.order_by(JobRow.number).limit(_AT_ONCE)))


def _find(session: Session, job_id: str, owner: str) -> DeletionRow | None:
    return session.scalar(select(DeletionRow).where(DeletionRow.job_id == job_id, DeletionRow.owner == owner))


def _count(session: Session, table: Any, job_id: str) -> int:
    return session.scalar(select(func.count()).select_from(table).where(table.job_id == job_id)) or 0


def _drop_old_receipts(session: Session, owner: str) -> None:
    done = select(DeletionRow.number).where(DeletionRow.owner == owner, DeletionRow.finished_at.is_not(None))
    last = session.scalar(done.order_by(DeletionRow.number.desc()).offset(MAX_RECEIPTS).limit(1))
    if last is not None:
        old = DeletionRow.owner == owner, DeletionRow.finished_at.is_not(None), DeletionRow.number <= last
        session.execute(delete(DeletionRow).where(*old))
