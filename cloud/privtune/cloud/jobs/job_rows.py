"""Rows of jobs and events: how they are created, found and read. `service` decides how their states change."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal, cast

from pydantic import ValidationError
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from privtune.cloud.db.tables import CheckpointRow, CurveRow, DeletionRow, EventRow, IdempotencyRow, JobRow
from privtune.cloud.jobs.progress_curve import ProgressCurve
from privtune.cloud.jobs.states import FINAL, Event, Job, JobError, JobProgress, Level, Phase, Request, Status
from privtune.shared.errors import InvalidInput, JobConflict, JobNotFound, PermissionDenied
from privtune.shared.job_spec import JobSpec
from privtune.shared.wording import counted

_IDEMPOTENCY_S = 24 * 3600
MAX_MESSAGE = 1000
MAX_EVENTS = 10_000  # of a job; older ones are deleted
MAX_DISCARDED = 200  # of an owner: ended jobs without a checkpoint
_EVENTS_AT_ONCE = 100
MAX_CHECKPOINTS = 1000  # rows of a job; its files are those of the newest one or two
WAITING = "waiting for the device that holds the data"


def checked_document(spec: JobSpec) -> str:
    """The spec as JSON. Raises InvalidInput unless it reads back as itself: JSON has no infinity and no NaN."""
    document = spec.model_dump_json()
    try:
        same = JobSpec.model_validate_json(document) == spec
    except ValidationError:
        same = False
    if not same:
        raise InvalidInput("The job holds NaN or infinity; every number must be finite.")
    return document


def check_quota(session: Session, owner: str, most: int) -> None:
    """Raises PermissionDenied when the owner has `most` unfinished jobs already."""
    active = select(func.count()).where(JobRow.owner == owner, JobRow.status.not_in(FINAL))
    if (session.scalar(active) or 0) >= most:
        raise PermissionDenied(
            f"You have {counted(most, 'unfinished job')}, the most that this cloud allows. Cancel one first."
        )


def drop_discarded(session: Session, owner: str) -> None:
    """Delete the owner's oldest jobs that ended before a step was kept, beyond the newest MAX_DISCARDED."""
    unfinished = FINAL - {"succeeded"}
    kept = select(CheckpointRow.job_id).where(CheckpointRow.job_id == JobRow.id).exists()
    discarded = (
        select(JobRow)
        .where(JobRow.owner == owner, JobRow.status.in_(unfinished), ~kept)
        .order_by(JobRow.number.desc())
        .offset(MAX_DISCARDED)
    )
    for row in session.scalars(discarded.limit(MAX_DISCARDED)).all():
        forget(session, row)


def forget(session: Session, row: JobRow, receipt: Mapping[str, Any] | None = None) -> None:
    """Delete a job's rows, and enter that its files have to go (`deletions`). receipt: see `DeletionRow`."""
    session.add(DeletionRow(job_id=row.id, owner=row.owner, receipt=receipt))
    for table in (EventRow, CheckpointRow, CurveRow, IdempotencyRow):
        session.execute(delete(table).where(table.job_id == row.id))
    session.delete(row)


def new_row(owner: str, document: str, labels: dict[str, str]) -> JobRow:
    """A queued job's row."""
    return JobRow(
        id=f"ftjob-{secrets.token_hex(12)}",
        owner=owner,
        status="queued",
        phase="waiting_for_device",
        reason=WAITING,
        held=False,
        spec=document,
        labels=labels,
        session_epoch=0,
        event_count=0,
        progress={},
        created_at=now(),
    )


def known_request(session: Session, owner: str, key: str | None, digest: str) -> str | None:
    """The job that this Idempotency-Key created within the last day. Raises JobConflict for another request."""
    if key is None:
        return None
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now() - _IDEMPOTENCY_S))
    row = session.scalar(select(IdempotencyRow).where(IdempotencyRow.owner == owner, IdempotencyRow.key == key))
    if row is None:
        return None
    if row.request_sha256 != digest:
        raise JobConflict(
            "This Idempotency-Key was used for another request. Use a new key for a new job.",
            param="Idempotency-Key",
        )
    return row.job_id


def find_job(session: Session, job_id: str, owner: str | None) -> JobRow:
    """The row of a job. Raises JobNotFound, also for a job of another owner."""
    row = session.scalar(select(JobRow).where(JobRow.id == job_id))
    if row is None or (owner is not None and row.owner != owner):
        raise JobNotFound(f"There is no job {job_id[:64]!r} for this API key.")
    return row


def append_event(
    session: Session,
    row: JobRow,
    level: Level,
    message: str,
    data: Mapping[str, Any] | None = None,
    *,
    kind: Literal["message", "metrics"] = "message",
) -> None:
    """Add the job's next event inside the running transaction."""
    row.event_count += 1
    session.add(
        EventRow(
            job_id=row.id,
            seq=row.event_count,
            level=level,
            kind=kind,
            message=message[:MAX_MESSAGE],
            data=dict(data or {}),
            created_at=now(),
        )
    )
    if row.event_count > MAX_EVENTS and row.event_count % _EVENTS_AT_ONCE == 0:
        session.execute(delete(EventRow).where(EventRow.job_id == row.id, EventRow.seq <= row.event_count - MAX_EVENTS))


def add_checkpoint(session: Session, job_id: str, step: int) -> None:
    """Enter a checkpoint, and forget the oldest ones over MAX_CHECKPOINTS."""
    session.merge(CheckpointRow(job_id=job_id, step=step, created_at=now()))
    session.flush()
    steps = select(CheckpointRow.step).where(CheckpointRow.job_id == job_id).order_by(CheckpointRow.step.desc())
    if (last := session.scalar(steps.offset(MAX_CHECKPOINTS).limit(1))) is not None:
        session.execute(delete(CheckpointRow).where(CheckpointRow.job_id == job_id, CheckpointRow.step <= last))


def stored_curve(session: Session, job_id: str) -> ProgressCurve:
    """The progress of a job over its steps, as of its last checkpoint or change of state; empty without one."""
    row = session.get(CurveRow, job_id)
    return ProgressCurve() if row is None else ProgressCurve(row.points, row.said)


def event_view(row: EventRow) -> Event:
    """The event's snapshot."""
    return Event(
        job_id=row.job_id,
        seq=row.seq,
        level=cast(Level, row.level),
        kind=cast(Literal["message", "metrics"], row.kind),
        message=row.message,
        data=dict(row.data),
        created_at=row.created_at,
    )


def job_view(row: JobRow, progress: JobProgress | None) -> Job:
    """The job's snapshot; `progress` None: as stored."""
    failed = row.error_code is not None
    return Job(
        id=row.id,
        owner=row.owner,
        spec=JobSpec.model_validate_json(row.spec),
        status=status_of(row),
        phase=cast(Phase, row.phase),
        reason=row.reason,
        requested=requested_of(row),
        held=row.held,
        metadata=dict(row.labels),
        progress=progress or JobProgress(**row.progress),
        tokens=row.tokens,
        adapter_sha256=row.adapter_sha256,
        error=JobError(code=row.error_code or "", message=row.error_message or "") if failed else None,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def status_of(row: JobRow) -> Status:
    """The row's status."""
    return cast(Status, row.status)


def requested_of(row: JobRow) -> Request | None:
    """What the job's owner asked for and has not happened yet."""
    return cast(Request | None, row.requested)


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
