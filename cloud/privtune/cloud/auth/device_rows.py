"""Rows of enrolled devices and of the tokens that let them in."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from privtune.cloud.db.tables import DeviceRow
from privtune.shared.errors import DeviceNotFound, PermissionDenied

MAX_DEVICES = 100  # of an owner: those in force, and as many of those that have ended
MAX_TOKENS = 100  # of an owner, not used yet


@dataclass(frozen=True, kw_only=True)
class Device:
    """What may be shown of a device. Times in seconds since 1970.

    label: as its token had it.
    last_seen_at: to the minute.
    expires_at: when the newest of its certificates ends.
    """

    id: str
    owner: str
    label: str
    enrolled_at: int
    last_seen_at: int | None
    expires_at: int
    revoked_at: int | None

    def ended(self, now: float) -> str | None:
        """Why it is no longer in force; None while it is."""
        if self.revoked_at is not None:
            return "was revoked"
        if self.expires_at <= now:
            return f"let its certificate expire on {time.strftime('%Y-%m-%d %H:%M', time.gmtime(self.expires_at))} UTC"
        return None


def make_room(session: Session, owner: str, now: int) -> None:
    """Delete the owner's oldest devices that have ended. Raises PermissionDenied where MAX_DEVICES are in force."""
    mine = select(DeviceRow.id).where(DeviceRow.owner == owner)
    over = DeviceRow.revoked_at.is_not(None) | (DeviceRow.expires_at <= now)
    if len(session.scalars(mine.where(~over)).all()) >= MAX_DEVICES:
        raise PermissionDenied(f"{owner} has {MAX_DEVICES} devices, the most that an owner may have. Revoke one first.")
    old = session.scalars(mine.where(over).order_by(DeviceRow.enrolled_at.desc(), DeviceRow.id).offset(MAX_DEVICES))
    session.execute(delete(DeviceRow).where(DeviceRow.id.in_(old.all())))


def find_device(session: Session, device_id: str, owner: str | None) -> DeviceRow:
    """A device by its id. Raises DeviceNotFound, also for another owner's."""
    row = session.get(DeviceRow, device_id)
    if row is None or owner not in (None, row.owner):
        raise DeviceNotFound(f"No device is called {device_id[:64]!r}; the list of devices shows their ids.")
    return row


def device_view(row: DeviceRow) -> Device:
    """What may be shown of a row."""
    return Device(
        id=row.id,
        owner=row.owner,
        label=row.label,
        enrolled_at=row.enrolled_at,
        last_seen_at=row.last_seen_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
