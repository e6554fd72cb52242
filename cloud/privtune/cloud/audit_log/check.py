"""Reads, verifies and prunes the audit log.

Whoever may write the database can compute the whole chain anew. So its end should be noted where they can't write: the
cloud logs the hash of each entry, and `verify` looks for a noted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, select

from privtune.cloud.audit_log.record import NEWEST, REMOVED, chained, end_of, record
from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import AuditEndRow, AuditRow
from privtune.shared.errors import InvalidInput

_AT_ONCE = 1000
_GRAIN_S = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One act; fields as of `AuditRow`."""

    number: int
    at: int
    who: str
    origin: str
    action: str
    owner: str
    target: str
    detail: dict[str, Any]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What a look at the whole log found.

    count: entries that are there and fit.
    end: NUMBER:HASH of the newest.
    problem: the first thing that does not fit; None: the log is whole.
    """

    count: int
    end: str
    problem: str | None


def entries(
    store: Store, *, since: int = 0, after: int = 0, owner: str | None = None, limit: int | None = None
) -> Iterator[AuditEntry]:
    """Entries from `since` (seconds since 1970) on and numbered above `after`, oldest first, at most `limit`.

    owner: only those that touch this owner's things; None: all.
    """
    mine = () if owner is None else (AuditRow.owner == owner,)
    while limit is None or limit > 0:
        size = min(limit or _AT_ONCE, _AT_ONCE)
        query = select(AuditRow).where(AuditRow.at >= since, AuditRow.number > after, *mine).order_by(AuditRow.number)
        with store.read() as session:
            rows = session.scalars(query.limit(size)).all()
        for row in rows:
            yield AuditEntry(**{name: getattr(row, name) for name in AuditEntry.__dataclass_fields__})
        if len(rows) < size:
            return
        after, limit = rows[-1].number, None if limit is None else limit - size


def verify(store: Store, noted: str | None = None) -> Verified:
    """Check the whole chain, up to where it ends now.

    noted: its end as it was seen earlier, NUMBER:HASH, which must be there still unless its age removed it. Raises
    InvalidInput for another form.
    """
    with store.read() as session:
        last, newest = _place(end_of(session, REMOVED)), _place(end_of(session, NEWEST))
    removed, said, known, count = last, ("0", ""), _noted(noted), 0
    for entry in entries(store):
        if entry.number > newest[0]:
            break  # appended meanwhile
        facts = asdict(entry)
        sha256 = facts.pop("sha256")
        if entry.number != last[0] + 1:
            return _broken(count, newest, f"entries {last[0] + 1} to {entry.number - 1} are missing")
        if sha256 != chained(last[1], facts):
            return _broken(count, newest, f"entry {entry.number} is not as it was written")
        if entry.action == "log.pruned":
            said = entry.target, entry.detail["sha256"]
        last, count = (entry.number, sha256), count + 1
        if known is not None and known[0] == entry.number and known[1] != sha256:
            return _broken(count, newest, f"entry {entry.number} is another than the one that was noted")
    if last != newest:
        return _broken(count, newest, f"entries after {last[0]} are missing: the newest was {newest[0]}")
    if said != (str(removed[0]), removed[1]):
        return _broken(count, newest, f"entries up to {removed[0]} are missing, and not for their age")
    if known is not None and known[0] > newest[0]:
        return _broken(count, newest, f"entries after {newest[0]} are missing: {known[0]} was noted")
    return Verified(count=count, end=_shown(newest), problem=None)


def prune(store: Store, before: int) -> int:
    """Remove entries from before this time (seconds since 1970) and say so in the log; returns how many.

    Only once the oldest is a day older than that, so that the log is not mostly about itself.
    """
    with store.write() as session:
        oldest = session.scalar(select(AuditRow.at).order_by(AuditRow.number).limit(1))
        if oldest is None or oldest >= before - _GRAIN_S:
            return 0
        # Clocks may have gone back: up to the first one that is young enough, in the order of the chain.
        young = select(AuditRow.number).where(AuditRow.at >= before).order_by(AuditRow.number).limit(1)
        first = session.scalar(young) or end_of(session, NEWEST).number + 1
        last = session.get_one(AuditRow, first - 1)
        place, removed = (last.number, last.sha256), end_of(session, REMOVED)
        count = place[0] - removed.number
        removed.number, removed.sha256 = place
        session.execute(delete(AuditRow).where(AuditRow.number < first))
        record(session, "log.pruned", target=str(place[0]), sha256=place[1])
    return count


def _place(row: AuditEndRow) -> tuple[int, str]:
    return row.number, row.sha256


def _shown(place: tuple[int, str]) -> str:
    return f"{place[0]}:{place[1]}"


def _noted(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    number, colon, sha256 = text.partition(":")
    if not (colon and number.isdecimal() and len(number) < 19):
        raise InvalidInput("A noted end of the log reads NUMBER:HASH, as an earlier --verify printed it.")
    return int(number), sha256


def _broken(count: int, newest: tuple[int, str], problem: str) -> Verified:
    return Verified(count=count, end=_shown(newest), problem=problem)
