"""API keys: drawn from the operating system's randomness, shown once, stored only as a hash.

A key carries 256 bits of randomness, so an unsalted SHA-256 can't be inverted by guessing, and the time of a lookup by
hash reveals nothing about the key. Jobs belong to the key's owner; an owner may have several keys. What a key may do is
its scopes, of which every route and every call needs exactly one: a program that submits jobs can't act as a device.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from privtune.cloud.audit_log.check import AuditEntry, entries
from privtune.cloud.audit_log.record import acting_as, record
from privtune.cloud.auth.key_rows import (
    BOOTSTRAP,
    DEFAULT_SCOPES,
    MAX_LIFE_S,
    ApiKey,
    Scope,
    check_owner,
    checked_scopes,
    find_key,
    key_view,
    make_room,
)
from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import ApiKeyRow
from privtune.shared.errors import InvalidInput, KeyConflict, PermissionDenied, PrivTuneError, Unauthenticated

log = logging.getLogger(__name__)

KEY_PREFIX = "pt-"
_DISPLAY_CHARACTERS = 9
_MIN_SECRET_CHARACTERS = 32
_MAX_SECRET_CHARACTERS = 256
_LAST_USED_GRAIN_S = 60


@dataclass(frozen=True, kw_only=True)
class NewApiKey:
    """A new key with its secret, which is not stored."""

    key: ApiKey
    secret: str = field(repr=False)


class ApiKeys:
    """Creates, lists, rotates, revokes and checks API keys. Thread-safe. `owner` None: the operator, for every owner.

    clock: seconds since 1970.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self._used: dict[str, int] = {}  # when a key's last use was written
        self._lock = threading.Lock()

    def create(
        self,
        owner: str,
        label: str = "",
        *,
        scopes: Iterable[str] = DEFAULT_SCOPES,
        expires_in_s: int | None = None,
    ) -> NewApiKey:
        """A new key of `owner`.

        Raises InvalidInput for an unusable owner, label, scope or time, PermissionDenied for one key too many.
        """
        with self._store.write() as session:
            made = self._new(session, owner, label, checked_scopes(scopes), expires_in_s)
            _record_new(session, made.key)
        return made

    def ensure(self, secret: str) -> bool:
        """Add a bootstrap key of the owner `default` unless it exists; returns whether it is new. Revoked ones stay so.

        Raises InvalidInput for a key that is too short.
        """
        if not secret.startswith(KEY_PREFIX) or not _MIN_SECRET_CHARACTERS <= len(secret) <= _MAX_SECRET_CHARACTERS:
            raise InvalidInput(
                f"PRIVTUNE_CLOUD_BOOTSTRAP_KEY must be {KEY_PREFIX!r} and at least "
                f"{_MIN_SECRET_CHARACTERS - len(KEY_PREFIX)} random characters, for example: "
                "echo pt-$(openssl rand -hex 32)"
            )
        with self._store.write() as session:
            known = session.scalar(select(ApiKeyRow.id).where(ApiKeyRow.secret_sha256 == _digest(secret)))
            if known is None:
                made = self._new(session, "default", "bootstrap", DEFAULT_SCOPES, None, secret)
                _record_new(session, made.key)
        return known is None

    def list(self, owner: str | None = None) -> list[ApiKey]:
        """Every key, oldest first, including those that have ended."""
        query = select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
        with self._store.read() as session:
            rows = session.scalars(query if owner is None else query.where(ApiKeyRow.owner == owner))
            return [key_view(row) for row in rows]

    def revoke(self, key: str, owner: str | None = None) -> ApiKey:
        """End a key now. key: its id, or the secret's visible beginning if that is unique. Raises KeyNotFound."""
        with self._store.write() as session:
            row = find_key(session, key, owner)
            if row.revoked_at is None:
                row.revoked_at = self._now()
                record(session, "key.revoked", owner=row.owner, target=row.id)
            return key_view(row)

    def rotate(
        self, key: str, owner: str | None = None, *, overlap_s: int = 0, expires_in_s: int | None = None
    ) -> NewApiKey:
        """A new key with the owner, label and scopes of another, which ends `overlap_s` seconds from now.

        key: as `revoke` takes it.
        expires_in_s: seconds that the new key lasts; None: as long as the other was made for.

        Raises as `create`, KeyNotFound, and KeyConflict for a key that has ended or was rotated before.
        """
        now = self._now()
        with self._store.write() as session:
            row = find_key(session, key, owner)
            old = key_view(row)
            why = f"was rotated to {old.replaced_by}" if old.replaced_by else old.ended(now)
            if why is not None:
                raise KeyConflict(f"The key {old.id} {why} already; it can't be rotated.")
            _check_time(overlap_s, "overlap_s", least=0)
            if expires_in_s is None and old.expires_at is not None:
                expires_in_s = old.expires_at - old.created_at
            row.expires_at = min(now + overlap_s, old.expires_at or now + overlap_s)
            made = self._new(session, old.owner, old.label, old.scopes, expires_in_s)
            row.replaced_by = made.key.id
            ends = {"ends_at": row.expires_at, "new_ends_at": made.key.expires_at}
            record(session, "key.rotated", owner=old.owner, target=old.id, replaced_by=made.key.id, **ends)
        return made

    def acts(self, owner: str, *, after: int = 0, limit: int = 100) -> Sequence[AuditEntry]:
        """What the audit log has of an owner's things, numbered above `after`, oldest first."""
        return [*entries(self._store, owner=owner, after=after, limit=limit)]

    def authenticate(self, secret: str, scope: Scope) -> ApiKey:
        """The key of a caller who wants to do what `scope` allows.

        Raises Unauthenticated for a key that is not known or has ended, PermissionDenied for one without the scope.
        """
        if not secret.startswith(KEY_PREFIX) or len(secret) > _MAX_SECRET_CHARACTERS:
            raise Unauthenticated("That is not a PrivTune API key: it must begin with `pt-`.")
        digest, now = _digest(secret), self._now()
        with self._store.read() as session:
            row = session.scalar(select(ApiKeyRow).where(ApiKeyRow.secret_sha256 == digest))
        if row is None or not hmac.compare_digest(row.secret_sha256, digest):
            raise Unauthenticated("This API key is not known here. Check PRIVTUNE_API_KEY and the cloud's address.")
        key = key_view(row)
        acting_as(key.id, key.owner)
        why = key.ended(now)
        if why is not None:
            raise Unauthenticated(f"The API key {key.display}… {why}. Ask the operator for another.")
        self._touch(key, now)
        if scope not in key.scopes:
            raise PermissionDenied(
                f"The API key {key.display}… may not do this: it needs the scope {scope!r} and has "
                f"{', '.join(map(repr, key.scopes))}."
            )
        return key

    def _new(
        self,
        session: Session,
        owner: str,
        label: str,
        scopes: tuple[Scope, ...],
        expires_in_s: int | None,
        given: str | None = None,
    ) -> NewApiKey:
        check_owner(owner, label)
        if expires_in_s is not None:
            _check_time(expires_in_s, "expires_in_s", least=1)
        now = self._now()
        make_room(session, owner, now)
        secret = given or KEY_PREFIX + secrets.token_urlsafe(32)
        row = ApiKeyRow(
            id=(BOOTSTRAP if given else "key-") + secrets.token_hex(8),
            owner=owner,
            label=label,
            display=secret[:_DISPLAY_CHARACTERS],
            scopes=" ".join(scopes),
            secret_sha256=_digest(secret),
            created_at=now,
            expires_at=None if expires_in_s is None else now + expires_in_s,
        )
        session.add(row)
        session.flush()
        return NewApiKey(key=key_view(row), secret=secret)

    def _touch(self, key: ApiKey, now: int) -> None:
        """Remember the use of a key, so coarsely that requests cost no write; where it fails, they go on."""
        with self._lock:
            if now - max(key.last_used_at or 0, self._used.get(key.id, 0)) < _LAST_USED_GRAIN_S:
                return
            self._used[key.id] = now
        try:
            with self._store.write() as session:
                session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key.id).values(last_used_at=now))
        except PrivTuneError as error:
            log.warning("the use of a key was not written", extra={"key": key.id, "detail": error.detail})

    def _now(self) -> int:
        return int(self._clock())


def _record_new(session: Session, key: ApiKey) -> None:
    record(
        session,
        "key.created",
        owner=key.owner,
        target=key.id,
        label=key.label,
        scopes=list(key.scopes),
        ends_at=key.expires_at,
    )


def bearer(authorization: str | None) -> str:
    """The key in an `Authorization: Bearer pt-…` header. Raises Unauthenticated."""
    if not authorization:
        raise Unauthenticated("No API key came with the request. Send `Authorization: Bearer pt-…`.")
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthenticated("The Authorization header must read `Bearer pt-…`.")
    return secret.strip()


def _check_time(seconds: int, param: str, *, least: int) -> None:
    if not least <= seconds <= MAX_LIFE_S:
        raise InvalidInput(f"A key lasts from {least} seconds to {MAX_LIFE_S // 86400:,} days.", param=param)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
