"""The queue of teachings as clouds work on it: what one takes, how far it is, how it ends, and whether the cloud lives.

A cloud says every few seconds that it lives, for what it works on. Of one that has not been heard of for `LEASE_S`,
another cloud on the database puts it back into the queue; what the first one reports after that does not count.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import TeachingRow
from privtune.cloud.jobs.job_rows import MAX_MESSAGE, now
from privtune.cloud.jobs.teaching_rows import Sources, Teaching, TeachingStatus, end, find, succeed
from privtune.shared.errors import InternalError, JobConflict, PrivTuneError
from privtune.shared.teaching_spec import TeachingSpec

LEASE_S = 300
_MOST_CRASHES = 3
_LOOK_S = 1.0


class TeachingQueue:
    """What a process on the database works on. Thread-safe.

    place: names this process's data folder among those of all clouds on the database.
    """

    def __init__(self, store: Store, place: str = "") -> None:
        self._store, self._place = store, place
        self._live: dict[str, dict[str, Any]] = {}
        self._cancelled: set[str] = set()
        self._looked = -_LOOK_S  # when the database was last asked, on the monotonic clock
        self._lock = threading.Lock()

    def claim(self) -> Teaching | None:
        """The oldest queued teaching, which is running from here on; None if there is none."""
        with self._store.write() as session:
            query = select(TeachingRow).where(TeachingRow.status == "queued").order_by(TeachingRow.number).limit(1)
            row = session.scalar(query)
            if row is None:
                return None
            row.status, row.reason, row.started_at = "running", "teaching", row.started_at or now()
            row.place, row.seen_at = self._place, now()
        return self._view(row)

    def began(self, teaching_id: str, result: str) -> None:
        """It works in the folder of this result from here on."""
        with self._store.write() as session:
            find(session, teaching_id, None).result = result

    def cancelling(self, teaching_id: str) -> bool:
        """Whether it is to end, as of the last second where another process knows: its owner wants that, or another
        cloud has taken it.
        """
        if teaching_id not in self._cancelled and time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            with self._store.read() as session:
                row = find(session, teaching_id, None)
                if row.cancelling or not self._is_mine(row):
                    self._cancelled.add(teaching_id)
        return teaching_id in self._cancelled

    def progress(self, teaching_id: str, stage: str, step: int, steps: int, loss: float) -> None:
        """Remember how far it is, in memory only."""
        with self._lock:
            facts = {"stage": stage, "step": step, "steps": steps, "loss": round(loss, 6), "updated_at": now()}
            self._live[teaching_id] = facts

    def succeed(self, teaching_id: str, result: str, card: dict[str, Any], sources: Sources) -> None:
        """Its package is written. sources: what it was made from."""
        with self._ending(teaching_id) as (session, row):
            succeed(session, row, result, card, sources)

    def fail(self, teaching_id: str, error: PrivTuneError) -> None:
        """It can't go on; the message is public."""
        with self._ending(teaching_id) as (_, row):
            row.error_code = error.reason
            end(row, "failed", error.message[:MAX_MESSAGE])

    def stopped(self, teaching_id: str) -> None:
        """It ended between two steps: cancelled if its owner wanted that, else queued again."""
        with self._ending(teaching_id) as (_, row):
            _wait_again(row)

    def recover(self) -> None:
        """At the start of a server: what a crash of it left running waits for its turn again.

        One that ran in several crashes in a row has failed: it may be what ends the cloud, by its memory say.
        """
        self._take_from((TeachingRow.place == self._place) | TeachingRow.place.is_(None))

    def renew(self) -> None:
        """Say that this cloud lives, for what it works on."""
        mine = TeachingRow.status == "running", TeachingRow.place == self._place
        with self._store.read() as session:
            if session.scalar(select(TeachingRow.id).where(*mine)) is None:
                return
        with self._store.write() as session:
            session.execute(update(TeachingRow).where(*mine).values(seen_at=now()))

    def reap(self) -> None:
        """What clouds worked on that are not heard of any more waits for its turn again, as after a crash."""
        silent = func.coalesce(TeachingRow.seen_at, TeachingRow.started_at) < now() - LEASE_S
        self._take_from((TeachingRow.place != self._place) & silent)

    def _take_from(self, gone: ColumnElement[bool]) -> None:
        running = TeachingRow.status == "running", gone
        with self._store.read() as session:
            ids = list(session.scalars(select(TeachingRow.id).where(*running)))
        for teaching_id in ids:
            with self._store.write() as session:
                row = session.scalar(select(TeachingRow).where(TeachingRow.id == teaching_id, *running))
                if row is None:
                    continue  # its cloud was heard of meanwhile
                _wait_again(row)
                row.progress = row.progress | {"crashes": row.progress.get("crashes", 0) + 1}
                if row.status == "queued" and row.progress["crashes"] >= _MOST_CRASHES:
                    row.error_code = InternalError.reason
                    end(row, "failed", f"the cloud ended {_MOST_CRASHES} times while it ran; begin it again to go on")

    @contextmanager
    def _ending(self, teaching_id: str) -> Iterator[tuple[Session, TeachingRow]]:
        """The row of a teaching that no longer runs, with its last progress.

        Raises JobConflict where another cloud has taken it, JobNotFound where it was deleted since.
        """
        with self._store.write() as session, self._lock:
            row = find(session, teaching_id, None)
            if not self._is_mine(row):
                self._live.pop(teaching_id, None)
                self._cancelled.discard(teaching_id)
                raise JobConflict(f"Teaching {teaching_id} was taken from this cloud, which had not been heard of.")
            row.progress = self._live.pop(teaching_id, row.progress)
            yield session, row
            self._cancelled.discard(teaching_id)

    def _is_mine(self, row: TeachingRow) -> bool:
        return row.status == "running" and row.place in (self._place, None)

    def _is_current(self, row: TeachingRow) -> bool:
        """Whether a succeeded one is of the model that this cloud offers."""
        raise NotImplementedError

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


def _wait_again(row: TeachingRow) -> None:
    """It has stopped between two steps: cancelled if its owner wanted that, else queued again."""
    if row.cancelling:
        end(row, "cancelled", "cancelled by its owner")
    else:
        row.status, row.reason = "queued", "waiting: the cloud ended, and it continues from its last checkpoint"
