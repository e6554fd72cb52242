"""Teachings: the one place where their state changes.

queued --> running --> succeeded | failed | cancelled; a cloud that ends makes a running one queued again
(`teaching_queue`). An ended one can be deleted; with the last one of a package goes the package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from privtune.cloud.catalog import Catalog
from privtune.cloud.corpora import Corpora
from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import JobRow, TeachingRow
from privtune.cloud.jobs.states import FINAL, Page
from privtune.cloud.jobs.teaching_queue import TeachingQueue
from privtune.cloud.jobs.teaching_rows import (
    ENDED,
    Sources,
    Teaching,
    discard_oldest,
    end,
    find,
    new_row,
    same,
    step_bytes,
    succeed,
)
from privtune.shared.errors import (
    InvalidInput,
    JobConflict,
    ModelNotFound,
    PermissionDenied,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.teaching_spec import TeachingSpec


class TaughtPackages(Protocol):
    """Where the taught packages are, by the name of a result."""

    def has(self, result: str) -> bool:
        """Whether its package is here."""

    def tidy(self, result: str, *, package: bool) -> None:
        """Delete what an interrupted teaching would continue from and, if `package`, the package."""


class Teachings(TeachingQueue):
    """The service. Thread-safe.

    catalog, corpora: what may be named.
    max_active: unfinished teachings of an owner.
    max_kept: unfinished and succeeded ones of an owner.
    max_step_bytes: memory of a step.
    place: see `TeachingQueue`.
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
        place: str = "",
    ) -> None:
        super().__init__(store, place)
        self.catalog, self.corpora = catalog, corpora
        self._max_active, self._max_kept, self._max_step_bytes = max_active, max_kept, max_step_bytes
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
                succeed(session, row, str(taught[0].result), dict(taught[0].card or {}), sources)
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
        found = select(TeachingRow).where(TeachingRow.status == "succeeded", TeachingRow.spec == document)
        found = found.where(TeachingRow.model_files == sources[0], TeachingRow.corpus_files == sources[1])
        rows = session.scalars(found.order_by(TeachingRow.number.desc())).all()
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

    def record(self, owner: str, spec: TeachingSpec, result: str, card: dict[str, Any], sources: Sources) -> Teaching:
        """A teaching of the operator's own that has succeeded, for an owner to use; the one that is known, if it is."""
        document = spec.model_dump_json()
        with self._store.write() as session:
            known = select(TeachingRow).where(TeachingRow.owner == owner, *same(result, document))
            row = session.scalar(known.limit(1)) or new_row(owner, document)
            succeed(session, row, result, card, sources)
            session.add(row)
        return self._view(row)

    def _is_current(self, row: TeachingRow) -> bool:
        try:
            return row.model_files == self.catalog.files(TeachingSpec.model_validate_json(row.spec).model)
        except ModelNotFound:
            return False


def _count(session: Session, rows: Select[Any]) -> int:
    return session.scalar(select(func.count()).select_from(rows.subquery())) or 0
