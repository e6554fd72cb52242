"""Teachings: the one place where their state changes.

queued --> running --> succeeded | failed | cancelled; a cloud that ends makes a running one queued again.
"""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from privtune.cloud.catalog import Catalog, ModelCard
from privtune.cloud.corpora import Corpora
from privtune.cloud.db.store import Store, TeachingRow
from privtune.cloud.jobs.job_rows import MAX_MESSAGE, now
from privtune.cloud.jobs.states import Page
from privtune.shared.errors import (
    InternalError,
    InvalidInput,
    JobConflict,
    JobNotFound,
    PermissionDenied,
    PrivTuneError,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.teaching_spec import TeachingSpec

TeachingStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
_ENDED = ("succeeded", "failed", "cancelled")
_MOST_CRASHES = 3


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """A snapshot of a teaching. Times in seconds since 1970.

    reason: why it is in this state, for people.
    progress: stage, step, steps, loss.
    result: names the folder of its package.
    card: what was taught with which figures, once it has succeeded.
    error_code: reason of `privtune.shared.errors`, once it has failed.
    """

    id: str
    owner: str
    spec: TeachingSpec
    status: TeachingStatus
    reason: str
    progress: dict[str, Any]
    result: str | None
    card: dict[str, Any] | None
    error_code: str | None
    created_at: int
    started_at: int | None
    finished_at: int | None


class Teachings:
    """The service. Thread-safe.

    catalog, corpora: what may be named.
    max_active: unfinished teachings of an owner.
    max_step_bytes: memory of a step.
    """

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        corpora: Corpora,
        *,
        max_active: int = 4,
        max_step_bytes: int = sys.maxsize,
    ) -> None:
        self._store, self.catalog, self.corpora = store, catalog, corpora
        self._max_active, self._max_step_bytes = max_active, max_step_bytes
        self._live: dict[str, dict[str, Any]] = {}
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()
        self.when_queued: Callable[[], None] = lambda: None

    def create(self, owner: str, spec: TeachingSpec) -> Teaching:
        """A queued teaching, or the owner's unfinished one of the same description.

        Raises as `check`, and PermissionDenied over the owner's limit.
        """
        self.check(spec)
        document = spec.model_dump_json()
        with self._store.write() as session:
            mine = select(TeachingRow).where(TeachingRow.owner == owner, TeachingRow.status.not_in(_ENDED))
            known = session.scalar(mine.where(TeachingRow.spec == document))
            if known is not None:
                return self._view(known)
            if (session.scalar(select(func.count()).select_from(mine.subquery())) or 0) >= self._max_active:
                raise PermissionDenied(
                    f"You have {self._max_active} unfinished teachings, the most that this cloud allows. Cancel one."
                )
            row = _new_row(owner, document)
            session.add(row)
        self.when_queued()
        return self._view(row)

    def check(self, spec: TeachingSpec) -> None:
        """Raises CorpusNotFound, ModelNotFound, ModelUnsupported, CutOutOfRange or InvalidInput."""
        self.corpora.check(spec.corpus)
        card = self.catalog.check_blocks(spec)
        if card.max_positions is not None and spec.max_length > card.max_positions:
            raise InvalidInput(
                f"max_length {spec.max_length} is over {spec.model}'s limit of {card.max_positions} tokens.",
                param="max_length",
            )
        needed = _step_bytes(spec, card)
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
            return self._view(_find(session, teaching_id, owner))

    def list(self, owner: str, *, after: str | None = None, limit: int = 20) -> Page[Teaching]:
        """A page of an owner's teachings, newest first. Raises JobNotFound for an unknown `after`."""
        with self._store.read() as session:
            query = select(TeachingRow).where(TeachingRow.owner == owner).order_by(TeachingRow.number.desc())
            if after is not None:
                query = query.where(TeachingRow.number < _find(session, after, owner).number)
            rows = session.scalars(query.limit(limit + 1)).all()
            return Page(items=[self._view(row) for row in rows[:limit]], has_more=len(rows) > limit)

    def cancel(self, teaching_id: str, owner: str) -> Teaching:
        """End it: at once, or after the present step. Cancelling twice changes nothing. Raises JobConflict."""
        with self._store.write() as session:
            row = _find(session, teaching_id, owner)
            if row.status in ("succeeded", "failed"):
                raise JobConflict(f"Teaching {row.id} has {row.status}; there is nothing to cancel.")
            if row.status == "queued":
                _end(row, "cancelled", "cancelled by its owner")
            elif row.status == "running":
                row.cancelling, row.reason = True, "cancelling after the present step"
                self._cancelled.add(row.id)
        return self._view(row)

    def check_job(self, owner: str, job: JobSpec) -> None:
        """Refuse a job that wants taught blocks which are not the owner's, not ready, or not its own.

        Raises JobNotFound, JobConflict or InvalidInput.
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

    # ---- reports of the school

    def claim(self) -> Teaching | None:
        """The oldest queued teaching, which is running from here on; None if there is none."""
        with self._store.write() as session:
            query = select(TeachingRow).where(TeachingRow.status == "queued").order_by(TeachingRow.number).limit(1)
            row = session.scalar(query.with_for_update(skip_locked=True))
            if row is None:
                return None
            row.status, row.reason, row.started_at = "running", "teaching", row.started_at or now()
        return self._view(row)

    def cancelling(self, teaching_id: str) -> bool:
        """Whether its owner wants it to end."""
        return teaching_id in self._cancelled

    def progress(self, teaching_id: str, stage: str, step: int, steps: int, loss: float) -> None:
        """Remember how far it is, in memory only."""
        with self._lock:
            facts = {"stage": stage, "step": step, "steps": steps, "loss": round(loss, 6), "updated_at": now()}
            self._live[teaching_id] = facts

    def succeed(self, teaching_id: str, result: str, card: dict[str, Any]) -> None:
        """Its package is written."""
        with self._ending(teaching_id) as row:
            row.result, row.card = result, card
            _end(row, "succeeded", "the taught blocks are ready")

    def fail(self, teaching_id: str, error: PrivTuneError) -> None:
        """It can't go on; the message is public."""
        with self._ending(teaching_id) as row:
            row.error_code = error.reason
            _end(row, "failed", error.message[:MAX_MESSAGE])

    def stopped(self, teaching_id: str) -> None:
        """It ended between two steps: cancelled if its owner wanted that, else queued again."""
        with self._ending(teaching_id) as row:
            if row.cancelling:
                _end(row, "cancelled", "cancelled by its owner")
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
                row = _find(session, teaching_id, None)
                row.progress = row.progress | {"crashes": row.progress.get("crashes", 0) + 1}
                if row.status == "queued" and row.progress["crashes"] >= _MOST_CRASHES:
                    row.error_code = InternalError.reason
                    _end(row, "failed", f"the cloud ended {_MOST_CRASHES} times while it ran; begin it again to go on")

    def record(self, owner: str, spec: TeachingSpec, result: str, card: dict[str, Any]) -> Teaching:
        """A teaching of the operator's own that has succeeded, for an owner to use."""
        row = _new_row(owner, spec.model_dump_json())
        row.started_at, row.result, row.card = row.created_at, result, card
        _end(row, "succeeded", "the taught blocks are ready")
        with self._store.write() as session:
            session.add(row)
        return self._view(row)

    @contextmanager
    def _ending(self, teaching_id: str) -> Iterator[TeachingRow]:
        """The row of a teaching that no longer runs, with its last progress."""
        with self._store.write() as session, self._lock:
            row = _find(session, teaching_id, None)
            row.progress = self._live.pop(teaching_id, row.progress)
            yield row
            self._cancelled.discard(teaching_id)

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
            error_code=row.error_code,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )


def _step_bytes(spec: TeachingSpec, card: ModelCard) -> int:
    """What a step takes beside the model, roughly: its graph, the relations, and the trained blocks' optimiser.

    A block's graph as in `TopSession.graph_bytes`; 12 D^2 weights a block; six T x T maps a head and projection.
    """
    tuned = spec.tuned_blocks if spec.label_column is not None else 0
    blocks, width = min(card.layers, max(spec.cut + spec.tail, tuned)), card.hidden_size
    rows = spec.batch_size * spec.max_length
    related = rows * spec.max_length * 6 * 3 * -(-width // 64) if spec.relations else 0
    return 4 * (rows * width * (1 + 40 * blocks) + related + 4 * 12 * width**2 * blocks)


def _new_row(owner: str, document: str) -> TeachingRow:
    return TeachingRow(
        id=f"teach-{secrets.token_hex(12)}",
        owner=owner,
        status="queued",
        cancelling=False,
        reason="waiting for its turn",
        spec=document,
        progress={},
        created_at=now(),
    )


def _find(session: Session, teaching_id: str, owner: str | None) -> TeachingRow:
    row = session.scalar(select(TeachingRow).where(TeachingRow.id == teaching_id))
    if row is None or (owner is not None and row.owner != owner):
        raise JobNotFound(f"There is no teaching {teaching_id[:64]!r} for this API key.")
    return row


def _end(row: TeachingRow, status: TeachingStatus, reason: str) -> None:
    row.status, row.reason, row.finished_at = status, reason, now()
