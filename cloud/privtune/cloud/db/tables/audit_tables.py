"""The audit log: one row for each administrative act."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from privtune.cloud.db.tables.table_base import Base


class AuditRow(Base):
    """An administrative act, chained to the one before it; see `privtune.cloud.audit_log`.

    who, origin: who did it, and from where.
    owner: whose things it touched; "" for the whole cloud.
    sha256: hex, of all other fields and the `sha256` of the entry before.
    """

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_owner_number", "owner", "number"),)

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[int] = mapped_column(BigInteger, index=True)
    who: Mapped[str] = mapped_column(String(64))
    origin: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(32))
    owner: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(128), index=True)
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    sha256: Mapped[str] = mapped_column(String(64))


class AuditEndRow(Base):
    """Both ends of the audit log: `id` 0 is the newest entry that its age removed, 1 the newest that there is."""

    __tablename__ = "audit_ends"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
