"""Devices that have an identity of their own: each enrols once, with a token, and renews its certificate by itself.

A token is `<SHA-256 of the authority's certificate>.<secret>`: with the first part the device knows the cloud, with the
second the cloud knows the device. A certificate says which device it is; whether that device may act is a row of the
database, looked up at every call and every second of a stream. So a revocation needs no list of certificates, and ends
what is under way.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import CursorResult, delete, func, select, update

from privtune.cloud.audit_log.record import acting_as, record
from privtune.cloud.auth.authority import Authority, certified_key, requested_key
from privtune.cloud.auth.device_rows import (
    MAX_TOKENS,
    Device,
    device_view,
    find_device,
    make_room,
)
from privtune.cloud.auth.key_rows import check_owner
from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import DeviceJobRow, DeviceRow, EnrolmentRow
from privtune.shared.errors import InvalidInput, PermissionDenied, PrivTuneError, Unauthenticated

log = logging.getLogger(__name__)

TOKEN_S = 3600
MAX_TOKEN_S = 30 * 86400
CERTIFICATE_S = 7 * 86400  # a laptop that was closed from Friday to Monday comes back by itself
ENROL_AGAIN = "Ask the operator for a token, then run `privtune enroll` with it."
_LAST_SEEN_GRAIN_S = 60


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What a device gets: its certificate (PEM), and for how many seconds it lasts."""

    device: Device
    certificate: bytes = field(repr=False)
    life_s: int


class Devices:
    """Lets devices in, and knows them. Thread-safe. `owner` None: the operator, for every owner.

    life_s: seconds that a certificate lasts.
    clock: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        authority: Authority,
        life_s: int = CERTIFICATE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self.authority, self._life_s, self._clock = store, authority, life_s, clock
        self._seen: dict[str, int] = {}  # when a device's last call was written
        self._lock = threading.Lock()

    def new_token(self, owner: str, label: str = "", expires_in_s: int = TOKEN_S) -> str:
        """A token for one device of `owner`; only a hash of it is kept.

        Raises InvalidInput for an unusable owner, label or time, PermissionDenied for one token too many.
        """
        check_owner(owner, label)
        if not 1 <= expires_in_s <= MAX_TOKEN_S:
            raise InvalidInput(f"A token lasts from 1 second to {MAX_TOKEN_S // 86400} days.", param="expires")
        secret, now = secrets.token_urlsafe(32), self._now()
        with self._store.write() as session:
            session.execute(delete(EnrolmentRow).where(EnrolmentRow.expires_at <= now))
            unused = select(func.count()).where(EnrolmentRow.owner == owner, EnrolmentRow.device_id.is_(None))
            if (session.scalar(unused) or 0) >= MAX_TOKENS:
                raise PermissionDenied(f"{owner} has {MAX_TOKENS} unused tokens; wait until they expire.")
            session.add(
                EnrolmentRow(secret_sha256=_digest(secret), owner=owner, label=label, expires_at=now + expires_in_s)
            )
            record(session, "device.invited", owner=owner, label=label, ends_at=now + expires_in_s)
        return f"{self.authority.fingerprint}.{secret}"

    def enrol(self, token: str, csr_pem: str) -> Enrolled:
        """Let the device in that has the token and the key of the signing request. Of two that race, one gets in.

        The same key may ask again with the same token, because its answer may have been lost.

        Raises Unauthenticated for a token that is not known, is used or has expired, InvalidInput for a request that
        can't be signed, PermissionDenied for one device too many.
        """
        fingerprint, _, secret = token.partition(".")
        if fingerprint != self.authority.fingerprint:
            raise Unauthenticated("This token is not one of this cloud's authority. Ask its operator for another.")
        digest, now, fresh = _digest(secret), self._now(), f"dev-{secrets.token_hex(8)}"
        with self._store.read() as session:  # first: strangers must not make the others wait for the write lock
            known = session.get(EnrolmentRow, digest)
        if known is None or known.expires_at <= now:
            raise Unauthenticated("This token is not known here, or has expired. Ask the operator for another.")
        key = requested_key(csr_pem)
        key_sha256 = _key_digest(key)
        with self._store.write() as session:
            row = session.get_one(EnrolmentRow, digest)
            mine = (EnrolmentRow.secret_sha256 == digest, EnrolmentRow.device_id.is_(None))
            used = session.execute(update(EnrolmentRow).where(*mine).values(device_id=fresh, key_sha256=key_sha256))
            if cast(CursorResult[Any], used).rowcount:
                make_room(session, row.owner, now)
                session.add(
                    DeviceRow(
                        id=fresh, owner=row.owner, label=row.label, enrolled_at=now, expires_at=now + self._life_s
                    )
                )
                session.flush()
                record(session, "device.enrolled", owner=row.owner, target=fresh, label=row.label)
            session.refresh(row)
            if row.key_sha256 != key_sha256:
                raise Unauthenticated("This token is used; each lets one device in. Ask the operator for another.")
            device = session.get(DeviceRow, row.device_id)
            if device is None or device_view(device).ended(now) is not None:
                raise Unauthenticated("This token's device has ended. Ask the operator for another token.")
            return self._certified(device, key)

    def renew(self, device_id: str, certificate_pem: bytes) -> Enrolled:
        """Another certificate for the key of the one that a device came with. Raises as `authenticate`."""
        with self._store.write() as session:
            self._in_force(session.get(DeviceRow, device_id))
            device = find_device(session, device_id, None)
            device.expires_at = self._now() + self._life_s
            return self._certified(device, certified_key(certificate_pem))

    def revoke(self, device_id: str, owner: str | None = None) -> Device:
        """Shut a device out: within seconds its streams end and its jobs wait for another. Raises DeviceNotFound."""
        with self._store.write() as session:
            row = find_device(session, device_id, owner)
            if row.revoked_at is None:
                row.revoked_at = self._now()
                record(session, "device.revoked", owner=row.owner, target=row.id)
            return device_view(row)

    def authenticate(self, device_id: str) -> Device:
        """The device of a certificate. Raises Unauthenticated for one that is not known, was revoked or has expired."""
        with self._store.read() as session:
            device = self._in_force(session.get(DeviceRow, device_id))
        acting_as(device.id, device.owner)
        self._touch(device)
        return device

    def opened(self, device_id: str | None, job_id: str) -> None:
        """Note that a device has opened a job for training; None: one that is not enrolled."""
        with self._store.write() as session:
            if device_id is None:
                session.execute(delete(DeviceJobRow).where(DeviceJobRow.job_id == job_id))
            else:
                session.merge(DeviceJobRow(job_id=job_id, device_id=device_id))

    def abandoned(self) -> list[str]:
        """Jobs that a device opened last which has been revoked."""
        query = select(DeviceJobRow.job_id).join(DeviceRow, DeviceRow.id == DeviceJobRow.device_id)
        with self._store.read() as session:
            return list(session.scalars(query.where(DeviceRow.revoked_at.is_not(None))))

    def list(self, owner: str | None = None) -> list[Device]:
        """Every device, oldest first, including those that have ended."""
        query = select(DeviceRow).order_by(DeviceRow.enrolled_at, DeviceRow.id)
        with self._store.read() as session:
            rows = session.scalars(query if owner is None else query.where(DeviceRow.owner == owner))
            return [device_view(row) for row in rows]

    def _in_force(self, row: DeviceRow | None) -> Device:
        if row is None:
            raise Unauthenticated("This device is not known here. " + ENROL_AGAIN)
        device = device_view(row)
        why = device.ended(self._now())
        if why is not None:
            raise Unauthenticated(f"The device {device.id} {why}. {ENROL_AGAIN}")
        return device

    def _certified(self, row: DeviceRow, key: ec.EllipticCurvePublicKey) -> Enrolled:
        certificate = self.authority.sign_device(key, row.id, self._life_s)
        return Enrolled(device=device_view(row), certificate=certificate, life_s=self._life_s)

    def _touch(self, device: Device) -> None:
        """Remember a call, so coarsely that calls cost no write; where it fails, they go on."""
        now = self._now()
        with self._lock:
            if now - max(device.last_seen_at or 0, self._seen.get(device.id, 0)) < _LAST_SEEN_GRAIN_S:
                return
            self._seen[device.id] = now
        try:
            with self._store.write() as session:
                session.execute(update(DeviceRow).where(DeviceRow.id == device.id).values(last_seen_at=now))
        except PrivTuneError as error:
            log.warning("a device's call was not written", extra={"device": device.id, "detail": error.detail})

    def _now(self) -> int:
        return int(self._clock())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _key_digest(key: ec.EllipticCurvePublicKey) -> str:
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key.public_bytes(*form)).hexdigest()
