"""Rows of jobs and events: how they are found, made and read. The rules of their states are in cloud/jobs.py."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import ValidationError
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from privtune.cloud.db.store import EventRow, IdempotencyRow, JobRow
from privtune.cloud.jobs.states import STATUSES, Event, Level, Status
from privtune.shared.errors import InvalidInput, JobNotFound
from privtune.shared.job_spec import JobSpec

_IDEMPOTENCY_S = 24 * 3600
_MAX_PAGE = 100
MAX_MESSAGE = 1000
WAITING = "waiting for the device that holds the data"


def checked_document(spec: JobSpec) -> str:
    """The spec as JSON, refused unless it reads back as itself: JSON has no infinity and no NaN."""
    document = spec.model_dump_json()
    try:
        same = JobSpec.model_validate_json(document) == spec
    except ValidationError:
        same = False
    if not same:
        raise InvalidInput("The job holds a number that is not finite; every number must be an ordinary one.")
    return document


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
    """The job that this Idempotency-Key made within the last day."""
    if key is None:
        return None
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now() - _IDEMPOTENCY_S))
    row = session.scalar(select(IdempotencyRow).where(IdempotencyRow.owner == owner, IdempotencyRow.key == key))
    if row is None:
        return None
    if row.request_sha256 != digest:
        raise InvalidInput(
            "This Idempotency-Key came with another request before. Use a new key for a new job.",
            param="Idempotency-Key",
        )
    return row.job_id


def find_job(session: Session, job_id: str, owner: str | None, *, lock: bool = False) -> JobRow:
    """The row of a job. Raises JobNotFound, also for a job of another owner."""
    query = select(JobRow).where(JobRow.id == job_id)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None or (owner is not None and row.owner != owner):
        raise JobNotFound(f"There is no job {job_id[:64]!r} for this API key.")
    return row


def cursor_of(session: Session, job_id: str, owner: str | None) -> int:
    """The number behind a listing's `after`. Raises InvalidInput."""
    try:
        return find_job(session, job_id, owner).number
    except JobNotFound as error:
        raise InvalidInput(f"after: there is no job {job_id[:64]!r} to go on behind.", param="after") from error


def append_event(
    session: Session,
    row: JobRow,
    level: Level,
    message: str,
    data: Mapping[str, Any] | None = None,
    *,
    kind: Literal["message", "metrics"] = "message",
) -> EventRow:
    """Add the job's next event inside the running transaction."""
    row.event_count += 1
    event = EventRow(
        job_id=row.id,
        seq=row.event_count,
        level=level,
        kind=kind,
        message=message[:MAX_MESSAGE],
        data=dict(data or {}),
        created_at=now(),
    )
    session.add(event)
    return event


def event_view(row: EventRow) -> Event:
    """A row as the snapshot that callers get."""
    return Event(
        job_id=row.job_id,
        seq=row.seq,
        level=cast(Level, row.level),
        kind=cast(Literal["message", "metrics"], row.kind),
        message=row.message,
        data=dict(row.data),
        created_at=row.created_at,
    )


def status_of(row: JobRow) -> Status:
    """The row's status."""
    return cast(Status, row.status)


def wanted_statuses(status: Sequence[Status] | Status) -> Sequence[Status]:
    """Raises InvalidInput for an unknown status."""
    wanted = cast(Sequence[Status], (status,)) if isinstance(status, str) else status
    for name in wanted:
        if name not in STATUSES:
            raise InvalidInput(f"status: {name!r} is none of {', '.join(STATUSES)}.", param="status")
    return wanted


def page_limit(limit: int) -> int:
    """Raises InvalidInput outside 1..100."""
    if not 1 <= limit <= _MAX_PAGE:
        raise InvalidInput(f"limit must be from 1 to {_MAX_PAGE}, not {limit}.", param="limit")
    return limit


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
