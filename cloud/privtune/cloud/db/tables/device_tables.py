"""Tables of enrolled devices and of the tokens that let them in."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from privtune.cloud.db.tables.table_base import Base


class DeviceRow(Base):
    """An enrolled device.

    expires_at: when the newest of its certificates ends.
    """

    __tablename__ = "devices"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    label: Mapped[str] = mapped_column(String(128))
    enrolled_at: Mapped[int] = mapped_column(BigInteger)
    last_seen_at: Mapped[int | None] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)


class EnrolmentRow(Base):
    """A token that lets one device of an owner in: only the SHA-256 of its secret is kept.

    device_id, key_sha256: who used it, and the public key of that device; None while nobody has.
    """

    __tablename__ = "enrolments"

    secret_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    label: Mapped[str] = mapped_column(String(128))
    expires_at: Mapped[int] = mapped_column(BigInteger)
    device_id: Mapped[str | None] = mapped_column(String(40))
    key_sha256: Mapped[str | None] = mapped_column(String(64))


class DeviceJobRow(Base):
    """The enrolled device that opened a job for training last."""

    __tablename__ = "device_jobs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(40), index=True)
