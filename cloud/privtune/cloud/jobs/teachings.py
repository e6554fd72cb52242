"""Teachings: the one place where their state changes.

queued --> running --> succeeded | failed | cancelled; a cloud that ends makes a running one queued again.
An ended one can be deleted; with the last one of a package goes the package.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlalchemy.orm import Session

from privtune.cloud.catalog import Catalog
from privtune.cloud.corpora import Corpora
from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import JobRow, TeachingRow
from privtune.cloud.jobs.job_rows import MAX_MESSAGE, now
from privtune.cloud.jobs.states import FINAL, Page
from privtune.cloud.jobs.teaching_rows import (
    ENDED,
    Teaching,
    TeachingStatus,
    discard_oldest,
    end,
    find,
    new_row,
    step_bytes,
)
from privtune.shared.errors import (
    InternalError,
    InvalidInput,
    JobConflict,
    ModelNotFound,
    PermissionDenied,
    PrivTuneError,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.teaching_spec import TeachingSpec

Sources = tuple[str | None, str | None]  # names of a model's files and a corpus's; None: not on this disk
_MOST_CRASHES = 3


class TaughtPackages(Protocol):
    """Where the taught packages are, by the name of a result."""

    def has(self, result: str) -> bool:
        """Whether its package is here."""

    def tidy(self, result: str, *, package: bool) -> None:
        """Delete what an interrupted teaching would continue from and, if `package`, the package."""


class Teachings:
    """The service. Thread-safe.

    catalog, corpora: what may be named.
    max_active: unfinished teachings of an owner.
    max_kept: unfinished and succeeded ones of an owner.
    max_step_bytes: memory of a step.
    """

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        corpora: Corpora,
        *,
        max_active: int = 4,
        max_kept: int = 20,
        max_step_bytes: int = sys.maxsize,
    ) -> None:
        self._store, self.catalog, self.corpora = store, catalog, corpora
        self._max_active, self._max_kept, self._max_step_bytes = max_active, max_kept, max_step_bytes
        self._live: dict[str, dict[str, Any]] = {}
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()
        self.when_queued: Callable[[], None] = lambda: None
        self.packages: TaughtPackages | None = None  # where this process has them

    def create(self, owner: str, spec: TeachingSpec) -> Teaching:
        """A queued teaching, or the owner's of the same description that is unfinished, or still good for use.

        What another owner had taught, with the same model and text, has succeeded at once.

        Raises as `check`, and PermissionDenied over one of the owner's limits.
        """
        self.check(spec)
        document, sources = spec.model_dump_json(), self.sources(spec)
        with self._store.write() as session:
            mine = select(TeachingRow).where(TeachingRow.owner == owner)
            unfinished = mine.where(TeachingRow.status.not_in(ENDED))
            known = session.scalar(unfinished.where(TeachingRow.spec == document))
            taught = self._taught(session, document, sources)
            known = known or next((row for row in taught if row.owner == owner), None)
            if known is not None:
                return self._view(known)
            if not taught and _count(session, unfinished) >= self._max_active:
                raise PermissionDenied(
                    f"You have {self._max_active} unfinished teachings, the most that this cloud allows. Cancel one."
                )
            if _count(session, mine.where(TeachingRow.status.not_in(("failed", "cancelled")))) >= self._max_kept:
                raise PermissionDenied(
                    f"You keep {self._max_kept} teachings, the most that this cloud allows. Delete one that no job "
                    "needs: privtune teachings delete ID (DELETE /v1/privtune/teachings/ID)."
                )
            row = new_row(owner, document)
            if taught:
                _succeed(session, row, str(taught[0].result), dict(taught[0].card or {}), sources)
            session.add(row)
            discard_oldest(session, owner)
        self.when_queued()
        return self._view(row)

    def sources(self, spec: TeachingSpec) -> Sources:
        """Names what a teaching would be made from now, without reading it: the files of its model and of its text."""
        return self.catalog.files(spec.model), self.corpora.files(spec.corpus)

    def _taught(self, session: Session, document: str, sources: Sources) -> list[TeachingRow]:
        """What has succeeded with this description from these sources, and is here, newest first."""
        if None in sources:
            return []
        same = select(TeachingRow).where(TeachingRow.status == "succeeded", TeachingRow.spec == document)
        same = same.where(TeachingRow.model_files == sources[0], TeachingRow.corpus_files == sources[1])
        rows = session.scalars(same.order_by(TeachingRow.number.desc())).all()
        return [row for row in rows if self.packages is None or self.packages.has(str(row.result))]

    def check(self, spec: TeachingSpec) -> None:
        """Raises CorpusNotFound, ModelNotFound, ModelUnsupported, CutOutOfRange or InvalidInput."""
        self.corpora.check(spec.corpus)
        card = self.catalog.check_blocks(spec)
        if card.max_positions is not None and spec.max_length > card.max_positions:
            raise InvalidInput(
                f"max_length {spec.max_length} is over {spec.model}'s limit of {card.max_positions} tokens.",
                param="max_length",
            )
        needed = step_bytes(spec, card)
        if needed > self._max_step_bytes:
            raise InvalidInput(
                f"A step needs about {needed >> 20:,} MiB of memory, and this cloud allows "
                f"{self._max_step_bytes >> 20:,}; lower batch_size, max_length or tuned_blocks, or ask the operator to "
                "raise --max-memory-mib.",
                param="batch_size",
            )

    def get(self, teaching_id: str, owner: str | None = None) -> Teaching:
        """A snapshot. Raises JobNotFound, also for another owner's."""
        with self._store.read() as session:
            return self._view(find(session, teaching_id, owner))

    def list(self, owner: str, *, after: str | None = None, limit: int = 20) -> Page[Teaching]:
        """A page of an owner's teachings, newest first. Raises JobNotFound for an unknown `after`."""
        with self._store.read() as session:
            query = select(TeachingRow).where(TeachingRow.owner == owner).order_by(TeachingRow.number.desc())
            if after is not None:
                query = query.where(TeachingRow.number < find(session, after, owner).number)
            rows = session.scalars(query.limit(limit + 1)).all()
            return Page(items=[self._view(row) for row in rows[:limit]], has_more=len(rows) > limit)

    def cancel(self, teaching_id: str, owner: str) -> Teaching:
        """End it: at once, or after the present step. Cancelling twice changes nothing. Raises JobConflict."""
        with self._store.write() as session:
            row = find(session, teaching_id, owner)
            if row.status in ("succeeded", "failed"):
                raise JobConflict(f"Teaching {row.id} has {row.status}; there is nothing to cancel.")
            if row.status == "queued":
                end(row, "cancelled", "cancelled by its owner")
            elif row.status == "running":
                row.cancelling, row.reason = True, "cancelling after the present step"
                self._cancelled.add(row.id)
        if row.status == "cancelled":
            self._tidy(row)
        return self._view(row)

    def delete(self, teaching_id: str, owner: str) -> None:
        """Forget an ended one. Its package goes with it, unless another teaching has the same.

        Raises JobConflict for one that has not ended, or that an unfinished job begins with.
        """
        with self._store.read() as session:
            row = find(session, teaching_id, owner)
            if row.status not in ENDED:
                raise JobConflict(f"Teaching {row.id} is {row.status}; cancel it first.")
            jobs = select(JobRow.id).where(JobRow.owner == owner, JobRow.status.not_in(FINAL))
            job = session.scalar(jobs.where(JobRow.spec.contains(row.id)).limit(1))
            if job is not None:
                raise JobConflict(f"Job {job} begins with teaching {row.id}; cancel the job first, or let it end.")
        self._tidy(row)  # before the row goes: what a crash leaves can be deleted again
        with self._store.write() as session:
            session.delete(find(session, teaching_id, owner))

    def _tidy(self, row: TeachingRow) -> None:
        """Delete the files that were kept for this teaching alone."""
        if self.packages is None or row.result is None:
            return
        with self._store.read() as session:
            others = select(TeachingRow.status).where(TeachingRow.result == row.result, TeachingRow.id != row.id)
            needed = set(session.scalars(others)) - {"failed", "cancelled"}
        if not needed - {"succeeded"}:
            self.packages.tidy(row.result, package="succeeded" not in needed)

    def check_job(self, owner: str, job: JobSpec) -> None:
        """Refuse a job that wants taught blocks which are not the owner's, not ready, or not its own.

        Raises JobNotFound, JobConflict (also where the model has changed since) or InvalidInput.
        """
        if job.taught is None:
            return
        found = self.get(job.taught, owner)
        if found.status != "succeeded":
            raise JobConflict(f"Teaching {found.id} is {found.status}: {found.reason}.", param="privtune.taught")
        for name in ("model", "task", "cut", "tail"):
            mine, theirs = getattr(job, name), getattr(found.spec, name)
            if mine != theirs:
                raise InvalidInput(
                    f"Teaching {found.id} is for {name} {theirs}, and this job has {name} {mine}.",
                    param="privtune.taught",
                )
        if not found.current:
            raise JobConflict(
                f"The files of {job.model} have changed since teaching {found.id}: ask for it again, which takes a "
                "moment if the weights are the same.",
                param="privtune.taught",
            )

    # ---- reports of the school

    def claim(self) -> Teaching | None:
        """The oldest queued teaching, which is running from here on; None if there is none."""
        with self._store.write() as session:
            query = select(TeachingRow).where(TeachingRow.status == "queued").order_by(TeachingRow.number).limit(1)
            row = session.scalar(query)
            if row is None:
                return None
            row.status, row.reason, row.started_at = "running", "teaching", row.started_at or now()
        return self._view(row)

    def began(self, teaching_id: str, result: str) -> None:
        """It works in the folder of this result from here on."""
        with self._store.write() as session:
            find(session, teaching_id, None).result = result

    def cancelling(self, teaching_id: str) -> bool:
        """Whether its owner wants it to end."""
        return teaching_id in self._cancelled

    def progress(self, teaching_id: str, stage: str, step: int, steps: int, loss: float) -> None:
        """Remember how far it is, in memory only."""
        with self._lock:
            facts = {"stage": stage, "step": step, "steps": steps, "loss": round(loss, 6), "updated_at": now()}
            self._live[teaching_id] = facts

    def succeed(self, teaching_id: str, result: str, card: dict[str, Any], sources: Sources) -> None:
        """Its package is written. sources: what it was made from."""
        with self._ending(teaching_id) as (session, row):
            _succeed(session, row, result, card, sources)

    def fail(self, teaching_id: str, error: PrivTuneError) -> None:
        """It can't go on; the message is public."""
        with self._ending(teaching_id) as (_, row):
            row.error_code = error.reason
            end(row, "failed", error.message[:MAX_MESSAGE])

    def stopped(self, teaching_id: str) -> None:
        """It ended between two steps: cancelled if its owner wanted that, else queued again."""
        with self._ending(teaching_id) as (_, row):
            if row.cancelling:
                end(row, "cancelled", "cancelled by its owner")
            else:
                row.status, row.reason = "queued", "waiting: the cloud ended, and it continues from its last checkpoint"

    def recover(self) -> None:
        """At the start of a server: what a crash left running waits for its turn again.

        One that ran in several crashes in a row has failed: it may be what ends the cloud, by its memory say.
        """
        with self._store.read() as session:
            ids = list(session.scalars(select(TeachingRow.id).where(TeachingRow.status == "running")))
        for teaching_id in ids:
            self.stopped(teaching_id)
            with self._store.write() as session:
                row = find(session, teaching_id, None)
                row.progress = row.progress | {"crashes": row.progress.get("crashes", 0) + 1}
                if row.status == "queued" and row.progress["crashes"] >= _MOST_CRASHES:
                    row.error_code = InternalError.reason
                    end(row, "failed", f"the cloud ended {_MOST_CRASHES} times while it ran; begin it again to go on")

    def record(self, owner: str, spec: TeachingSpec, result: str, card: dict[str, Any], sources: Sources) -> Teaching:
        """A teaching of the operator's own that has succeeded, for an owner to use; the one that is known, if it is."""
        document = spec.model_dump_json()
        with self._store.write() as session:
            known = select(TeachingRow).where(TeachingRow.owner == owner, *_same(result, document))
            row = session.scalar(known.limit(1)) or new_row(owner, document)
            _succeed(session, row, result, card, sources)
            session.add(row)
        return self._view(row)

    @contextmanager
    def _ending(self, teaching_id: str) -> Iterator[tuple[Session, TeachingRow]]:
        """The row of a teaching that no longer runs, with its last progress."""
        with self._store.write() as session, self._lock:
            row = find(session, teaching_id, None)
            row.progress = self._live.pop(teaching_id, row.progress)
            yield session, row
            self._cancelled.discard(teaching_id)

    def _is_current(self, row: TeachingRow) -> bool:
        try:
            return row.model_files == self.catalog.files(TeachingSpec.model_validate_json(row.spec).model)
        except ModelNotFound:
            return False

    def _view(self, row: TeachingRow) -> Teaching:
        return Teaching(
            id=row.id,
            owner=row.owner,
            spec=TeachingSpec.model_validate_json(row.spec),
            status=cast(TeachingStatus, row.status),
            reason=row.reason,
            progress=dict(self._live.get(row.id, row.progress)),
            result=row.result,
            card=row.card,
            current=row.status == "succeeded" and self._is_current(row),
            error_code=row.error_code,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )


def _same(result: str, document: str) -> tuple[ColumnElement[bool], ...]:
    """Succeeded teachings of this description with this result."""
    return TeachingRow.status == "succeeded", TeachingRow.result == result, TeachingRow.spec == document


def _succeed(session: Session, row: TeachingRow, result: str, card: dict[str, Any], sources: Sources) -> None:
    """Earlier ones with the same result are as good: of the weights, which name it, only the files are others."""
    files = dict(zip(("model_files", "corpus_files"), sources, strict=True))
    session.execute(update(TeachingRow).where(*_same(result, row.spec)).values(**files))
    row.started_at = row.started_at or row.created_at
    row.result, row.card = result, card
    row.model_files, row.corpus_files = sources
    end(row, "succeeded", "the taught blocks are ready")


def _count(session: Session, rows: Select[Any]) -> int:
    return session.scalar(select(func.count()).select_from(rows.subquery())) or 0
