"""API keys: drawn from the operating system's randomness, shown once, stored only as a hash.

A key carries 256 bits of randomness, so an unsalted SHA-256 can't be inverted by guessing, and the time of a lookup by
hash reveals nothing about the key. Jobs belong to the key's owner; an owner may have several keys.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, field

from sqlalchemy import select

from privtune.cloud.db.store import ApiKeyRow, Store
from privtune.shared.errors import InvalidInput, Unauthenticated

KEY_PREFIX = "pt-"
_DISPLAY_CHARACTERS = 9
_MIN_SECRET_CHARACTERS = 32
_MAX_SECRET_CHARACTERS = 256
_LAST_USED_GRAIN_S = 600
_OWNER = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What may be shown of a key. Times in seconds since 1970.

    display: the secret's visible beginning.
    """

    id: str
    owner: str
    label: str
    display: str
    created_at: int
    last_used_at: int | None
    revoked_at: int | None


@dataclass(frozen=True, kw_only=True)
class NewApiKey:
    """A new key with its secret, which is not stored."""

    key: ApiKey
    secret: str = field(repr=False)


class ApiKeys:
    """Creates, lists, revokes and checks API keys. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, owner: str, label: str = "") -> NewApiKey:
        """A new key of `owner`. Raises InvalidInput for an unusable owner or label."""
        secret = KEY_PREFIX + secrets.token_urlsafe(32)
        return NewApiKey(key=self._insert(owner, label, secret), secret=secret)

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
        with self._store.read() as session:
            known = session.scalar(select(ApiKeyRow.id).where(ApiKeyRow.secret_sha256 == _digest(secret)))
        if known is None:
            self._insert("default", "bootstrap", secret)
        return known is None

    def list(self) -> list[ApiKey]:
        """Every key, oldest first, including revoked ones."""
        with self._store.read() as session:
            rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id))
            return [_view(row) for row in rows]

    def revoke(self, key: str) -> ApiKey:
        """Revoke by id, or by the secret's visible beginning if that is unique. Raises InvalidInput."""
        with self._store.write() as session:
            wanted = (ApiKeyRow.id == key) | (ApiKeyRow.display == key)
            rows = session.scalars(select(ApiKeyRow).where(wanted)).all()
            if len(rows) != 1:
                found = "No key" if not rows else "More than one key"
                raise InvalidInput(f"{found} is called {key!r}. `privtune-cloud keys list` shows the ids.")
            rows[0].revoked_at = rows[0].revoked_at or _now()
            return _view(rows[0])

    def authenticate(self, secret: str) -> str:
        """The owner behind a key. Raises Unauthenticated."""
        if not secret.startswith(KEY_PREFIX) or len(secret) > _MAX_SECRET_CHARACTERS:
            raise Unauthenticated("That is not a PrivTune API key: it must begin with `pt-`.")
        digest = _digest(secret)
        with self._store.read() as session:
            row = session.scalar(select(ApiKeyRow).where(ApiKeyRow.secret_sha256 == digest))
        if row is None or not hmac.compare_digest(row.secret_sha256, digest):
            raise Unauthenticated("This API key is not known here. Check PRIVTUNE_API_KEY and the cloud's address.")
        if row.revoked_at is not None:
            raise Unauthenticated(f"The API key {row.display}… was revoked. Ask the operator for another.")
        self._touch(row)
        return row.owner

    def _insert(self, owner: str, label: str, secret: str) -> ApiKey:
        if not _OWNER.match(owner):
            raise InvalidInput(
                f"{owner!r} can't be an owner: use up to 64 letters, digits, dots, underscores and dashes.",
                param="owner",
            )
        if len(label) > 128:
            raise InvalidInput("A key's label has at most 128 characters.", param="label")
        row = ApiKeyRow(
            id=f"key-{secrets.token_hex(8)}",
            owner=owner,
            label=label,
            display=secret[:_DISPLAY_CHARACTERS],
            secret_sha256=_digest(secret),
            created_at=_now(),
        )
        with self._store.write() as session:
            session.add(row)
        return _view(row)

    def _touch(self, row: ApiKeyRow) -> None:
        # Coarse, so that not every request costs a write.
        if row.last_used_at is not None and _now() - row.last_used_at < _LAST_USED_GRAIN_S:
            return
        with self._store.write() as session:
            stored = session.get(ApiKeyRow, row.id)
            if stored is not None:
                stored.last_used_at = _now()


def bearer(authorization: str | None) -> str:
    """The key in an `Authorization: Bearer pt-…` header. Raises Unauthenticated."""
    if not authorization:
        raise Unauthenticated("No API key came with the request. Send `Authorization: Bearer pt-…`.")
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthenticated("The Authorization header must read `Bearer pt-…`.")
    return secret.strip()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> int:
    return int(time.time())


def _view(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        owner=row.owner,
        label=row.label,
        display=row.display,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
