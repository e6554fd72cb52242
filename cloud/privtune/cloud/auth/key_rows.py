"""Rows of API keys: what a key may do, how it is found, shown and ended."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from privtune.cloud.db.tables import ApiKeyRow
from privtune.shared.errors import InvalidInput, KeyNotFound, PermissionDenied

Scope = Literal["read", "submit", "device", "admin"]
SCOPES: dict[Scope, str] = {
    "read": "list and show",
    "submit": "create and steer jobs and teachings",
    "device": "run jobs and use their models, over gRPC",
    "admin": "make, rotate and revoke the owner's keys, read its audit log",
}
DEFAULT_SCOPES: tuple[Scope, ...] = ("read", "submit", "device")
BOOTSTRAP = "boot-"  # beginning of the ids of keys that the operator's environment names
MAX_LIFE_S = 10 * 365 * 24 * 3600
KEY_CHECK_S = 1.0  # a key that has ended ends its streams within this time and what it takes to look
MAX_KEYS = 100  # of an owner: those in force, and as many of those that have ended


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What may be shown of a key. Times in seconds since 1970.

    display: the secret's visible beginning.
    scopes: what it may do.
    last_used_at: to the minute.
    expires_at: when it ends by itself; None: never.
    replaced_by: the key that it was rotated to.
    """

    id: str
    owner: str
    label: str
    display: str
    scopes: tuple[Scope, ...]
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    revoked_at: int | None
    replaced_by: str | None

    def ended(self, now: float) -> str | None:
        """Why it is no longer in force; None while it is."""
        if self.revoked_at is not None:
            return "was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            how = "expired" if self.replaced_by is None else f"was rotated to {self.replaced_by} and ended"
            return f"{how} on {time.strftime('%Y-%m-%d %H:%M', time.gmtime(self.expires_at))} UTC"
        return None


def checked_scopes(scopes: Iterable[str]) -> tuple[Scope, ...]:
    """Scopes in the order of the table, each once. Raises InvalidInput for none, and for one that is not there."""
    wanted = set(scopes)
    if not wanted or not wanted <= set(SCOPES):
        raise InvalidInput(f"A key needs one or more of the scopes {', '.join(SCOPES)}.", param="scopes")
    return tuple(scope for scope in SCOPES if scope in wanted)


def make_room(session: Session, owner: str, now: int) -> None:
    """Delete the owner's oldest keys that have ended, but for bootstrap keys, which the next start would make again.

    Raises PermissionDenied where MAX_KEYS are in force.
    """
    mine = select(ApiKeyRow.id).where(ApiKeyRow.owner == owner)
    over = ApiKeyRow.revoked_at.is_not(None) | func.coalesce(ApiKeyRow.expires_at <= now, False)
    if len(session.scalars(mine.where(~over)).all()) >= MAX_KEYS:
        raise PermissionDenied(f"{owner} has {MAX_KEYS} keys, the most that an owner may have. Revoke one first.")
    made_here = ApiKeyRow.id.not_like(f"{BOOTSTRAP}%")
    newest_first = mine.where(over, made_here).order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id)
    old = session.scalars(newest_first.offset(MAX_KEYS)).all()
    session.execute(delete(ApiKeyRow).where(ApiKeyRow.id.in_(old)))


def find_key(session: Session, key: str, owner: str | None) -> ApiKeyRow:
    """A key by its id, or its visible beginning if that is unique. Raises KeyNotFound, also for another owner's."""
    wanted = (ApiKeyRow.id == key) | (ApiKeyRow.display == key)
    query = select(ApiKeyRow).where(wanted)
    rows = session.scalars(query if owner is None else query.where(ApiKeyRow.owner == owner)).all()
    if len(rows) != 1:
        found = "No key" if not rows else "More than one key"
        raise KeyNotFound(f"{found} is called {key[:64]!r}; the list of keys shows their ids.")
    return rows[0]


def key_view(row: ApiKeyRow) -> ApiKey:
    """What may be shown of a row."""
    return ApiKey(
        id=row.id,
        owner=row.owner,
        label=row.label,
        display=row.display,
        scopes=cast(tuple[Scope, ...], tuple(row.scopes.split())),
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        replaced_by=row.replaced_by,
    )
