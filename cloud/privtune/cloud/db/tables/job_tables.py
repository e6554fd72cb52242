"""Jobs, what belongs to one, and what is left of one that was deleted."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from privtune.cloud.db.tables.table_base import Base, Counter


class JobRow(Base):
    """A fine-tuning job. `number` orders listings; `id` is public."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_owner_status_number", "owner", "status", "number"),)

    number: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    phase: Mapped[str] = mapped_column(String(32))
    reason: Mapped[str] = mapped_column(Text)
    requested: Mapped[str | None] = mapped_column(String(8))
    held: Mapped[bool]
    spec: Mapped[str] = mapped_column(Text)
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    session_epoch: Mapped[int] = mapped_column(BigInteger)
    event_count: Mapped[int] = mapped_column(BigInteger)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON)
    tokens: Mapped[int | None] = mapped_column(BigInteger)
    adapter_sha256: Mapped[str | None] = mapped_column(String(64))
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)


class EventRow(Base):
    """An event of a job, numbered from 1 per job."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    level: Mapped[str] = mapped_column(String(8))
    kind: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(BigInteger)


class CheckpointRow(Base):
    """A checkpoint among the job's artifacts."""

    __tablename__ = "checkpoints"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[int] = mapped_column(BigInteger)


class CurveRow(Base):
    """The progress of a job over its steps, as of its last checkpoint or change of state.

    said: what its device says of the job, where its owner shares that.
    points: see `privtune.cloud.jobs.progress_curve.ProgressPoint`; at most MAX_POINTS there.
    """

    __tablename__ = "job_curves"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    points: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    said: Mapped[dict[str, str]] = mapped_column(JSON)


class LeaseRow(Base):
    """Which device holds a job.

    holder: the device's name in this job.
    token: epoch of the session that may write; it grows with every claim.
    until: when the lease runs out.
    """

    __tablename__ = "leases"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    holder: Mapped[str] = mapped_column(String(32))
    token: Mapped[int] = mapped_column(BigInteger)
    until: Mapped[int] = mapped_column(BigInteger)


class IdempotencyRow(Base):
    """The job that a client's Idempotency-Key created, so that a repeated request creates no second one."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (UniqueConstraint("owner", "key"),)

    number: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    owner: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(255))
    request_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[int] = mapped_column(BigInteger, index=True)


class DeletionRow(Base):
    """A job that is deleted: its rows are gone, its files once `finished_at` is set.

    receipt: what went; None where nobody asked for the deletion, and the row goes with the files.
    """

    __tablename__ = "deletions"
    __table_args__ = (Index("ix_deletions_owner_number", "owner", "number"),)

    number: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(String(40), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    receipt: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    finished_at: Mapped[int | None] = mapped_column(BigInteger, index=True)
