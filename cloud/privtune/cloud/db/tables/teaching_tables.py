"""Teachings."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from privtune.cloud.db.tables.table_base import Base, Counter


class TeachingRow(Base):
    """A teaching. `number` orders listings and the queue; `result` names its folder once that is known.

    place: the data folder of the cloud that works on it, which alone has what it would continue from.
    seen_at: when that cloud was last heard of; None before it has begun.
    model_files, corpus_files: name the files that a succeeded one was made from.
    """

    __tablename__ = "teachings"
    __table_args__ = (Index("ix_teachings_owner_number", "owner", "number"),)

    number: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16), index=True)
    cancelling: Mapped[bool]
    reason: Mapped[str] = mapped_column(Text)
    spec: Mapped[str] = mapped_column(Text)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON)
    result: Mapped[str | None] = mapped_column(String(64))
    place: Mapped[str | None] = mapped_column(String(32))
    seen_at: Mapped[int | None] = mapped_column(BigInteger)
    model_files: Mapped[str | None] = mapped_column(String(64))
    corpus_files: Mapped[str | None] = mapped_column(String(64))
    card: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error_code: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)
