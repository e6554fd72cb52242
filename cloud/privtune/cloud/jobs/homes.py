"""How far each device's home is, so that an older copy of one is noticed before it draws.

A record's release is drawn once, and a home remembers what it drew. A home that was restored from a backup, or copied,
has forgotten some of it. So every home counts its claims, and the cloud keeps the largest count that it has seen.
"""

from __future__ import annotations

import re

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from privtune.cloud.audit_log.record import record
from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import AuditRow, HomeRow
from privtune.shared.errors import HomeOutdated, InvalidInput, PermissionDenied
from privtune.shared.wording import counted

MAX_HOMES = 1000  # of an owner; none is ever forgotten
MAX_COUNT = 1 << 53
_NAME = re.compile(r"[0-9a-f]{32}")


class Homes:
    """The counts of all homes. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def claim(self, owner: str, home_id: str, count: int, nonce: str) -> None:
        """Enter a home's next claim; the same claim again changes nothing.

        Raises HomeOutdated for a count that was seen before from another copy, InvalidInput, and PermissionDenied for
        one home too many.
        """
        if not (_NAME.fullmatch(home_id) and _NAME.fullmatch(nonce) and 0 < count <= MAX_COUNT):
            raise InvalidInput("a home is claimed with two names of 32 hex digits and a count from 1")
        with self._store.write() as session:
            row = session.get(HomeRow, (owner, home_id))
            outdated = False
            if row is None:
                known = session.scalar(select(func.count()).select_from(HomeRow).where(HomeRow.owner == owner)) or 0
                if known >= MAX_HOMES:
                    raise PermissionDenied(f"You have {counted(known, 'home')}, the most that this cloud allows.")
                session.add(HomeRow(owner=owner, home_id=home_id, count=count, nonce=nonce))
                record(session, "home.added", owner=owner, target=home_id, count=count)
            elif count > row.count:
                row.count, row.nonce = count, nonce
            elif outdated := (count, nonce) != (row.count, row.nonce):
                self._record_refusal(session, owner, home_id, count, row.count)
        if outdated:
            raise HomeOutdated(
                "This home is an older copy: the cloud has seen it further on, and what it would draw now may have "
                "been drawn before. Use the newest copy. If that one is lost: `privtune home recover`."
            )

    @staticmethod
    def _record_refusal(session: Session, owner: str, home_id: str, count: int, seen: int) -> None:
        """Once for each copy, which may ask for ever."""
        about = select(AuditRow).where(AuditRow.target == home_id, AuditRow.owner == owner)
        last = session.scalar(about.order_by(AuditRow.number.desc()).limit(1))
        if last is None or (last.action, last.detail.get("count")) != ("home.refused", count):
            record(session, "home.refused", owner=owner, target=home_id, count=count, seen=seen)
