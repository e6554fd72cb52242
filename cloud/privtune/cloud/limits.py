"""What an owner may take of the cloud: the operator's numbers for everyone, and others for some owners.

Requests and bytes flow: what was taken is forgotten at so much a minute. Bytes over the limit wait, and gRPC makes the
device wait; anything else over a limit is refused.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from privtune.cloud.audit_log.record import record
from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import JobRow, OwnerRow
from privtune.cloud.settings import Limits
from privtune.shared.errors import InvalidInput, ModelNotFound, RateLimited, StorageFull

_KNOWN_S = 1.0  # how long an owner's limits are believed: other processes change them
_GIB = 1 << 30


class Buckets:
    """What owners took of something, each with its own bucket that leaks. Thread-safe; in memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[str, tuple[float, float]] = {}  # taken and not yet forgotten, and when that was
        self._lock = threading.Lock()

    def take(self, owner: str, amount: int, per_minute: int, *, unless_over: bool = False) -> float:
        """Seconds until what was taken is within `per_minute` again. unless_over: then nothing is taken."""
        with self._lock:
            now = self._clock()
            used, then = self._used.get(owner, (0.0, now))
            used = max(0.0, used - (now - then) * per_minute / 60) + amount
            over = max(0.0, used - per_minute)
            if not (over and unless_over):
                self._used[owner] = (used, now)
            return over * 60 / per_minute


class OwnerLimits:
    """Limits by owner, and what counts against them. Thread-safe.

    usual: those of an owner without others.
    data_folder: where jobs store what counts; None: nothing is stored.
    """

    def __init__(
        self,
        store: Store,
        usual: Limits | None = None,
        data_folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._usual, self._data_folder, self._clock = store, usual or Limits(), data_folder, clock
        self._known: dict[str, tuple[Limits, float]] = {}
        self._requests, self._bytes = Buckets(clock), Buckets(clock)

    def of(self, owner: str) -> Limits:
        """An owner's limits, as of the last second."""
        limits, read_at = self._known.get(owner, (self._usual, -math.inf))
        if self._clock() - read_at > _KNOWN_S:
            with self._store.read() as session:
                row = session.get(OwnerRow, owner)
            limits = self._with(row.limits if row is not None else {})
            self._known[owner] = limits, self._clock()
        return limits

    def own(self) -> dict[str, dict[str, Any]]:
        """Fields of `Limits` that owners have of their own."""
        with self._store.read() as session:
            return {row.owner: row.limits for row in session.scalars(select(OwnerRow))}

    def set(self, owner: str, **limits: Any) -> None:
        """Give an owner limits of its own, in place of earlier ones; none: the usual ones. Raises InvalidInput."""
        self._with(limits)
        with self._store.write() as session:
            row = session.get(OwnerRow, owner)
            if row is not None:
                session.delete(row)
                session.flush()
            if limits:
                session.add(OwnerRow(owner=owner, limits=limits))
            record(session, "limits.set", owner=owner, **limits)
        self._known.pop(owner, None)

    def check_model(self, owner: str, model: str) -> None:
        """Raises ModelNotFound for a model that the owner may not use."""
        models = self.of(owner).models
        if models is not None and model not in models:
            raise ModelNotFound(
                f"This cloud does not offer you the model {model[:80]!r}; `privtune models` (GET /v1/models) lists "
                "those that it does.",
                param="model",
            )

    def count_request(self, owner: str) -> None:
        """Count a request, at either door. Raises RateLimited for one too many, which does not count."""
        most = self.of(owner).requests_per_minute
        wait_s = math.ceil(self._requests.take(owner, 1, most, unless_over=True))
        if wait_s:
            raise RateLimited(
                f"More than {most:,} requests came within a minute, the most that this cloud allows an owner; try "
                f"again in {wait_s} s.",
                retry_after_s=wait_s,
            )

    def counting_bytes(self, owner: str) -> Callable[[int], float]:
        """A function for one stream: counts bytes that came, and gives the seconds to wait before more are read."""
        most = self.of(owner).bytes_per_minute
        return lambda size: 0.0 if most is None else self._bytes.take(owner, size, most)

    def check_stored(self, owner: str) -> None:
        """Raises StorageFull for an owner whose jobs take all its disk space already."""
        most = self.of(owner).stored_bytes
        if most is None or self._data_folder is None:
            return
        with self._store.read() as session:
            ids = session.scalars(select(JobRow.id).where(JobRow.owner == owner)).all()
        held = sum(_size(self._data_folder / "jobs" / job_id) for job_id in ids)
        if held >= most:
            raise StorageFull(
                f"Your jobs take {held / _GIB:.2f} GiB here, of {most / _GIB:.2f} that this cloud allows you; delete "
                "some, or ask its operator for more."
            )

    def _with(self, changes: dict[str, Any]) -> Limits:
        try:
            return Limits.model_validate(self._usual.model_dump() | changes)
        except ValueError as error:
            raise InvalidInput("A limit is out of range.", detail=str(error)) from error


def _size(folder: Path) -> int:
    """Bytes of all files in a folder; what goes away meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
