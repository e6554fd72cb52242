"""Pages of jobs, events and checkpoints, read inside a transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from privtune.cloud.db.tables import CheckpointRow, EventRow, JobRow
from privtune.cloud.jobs.job_rows import find_job
from privtune.cloud.jobs.states import STATUSES, Page, Status
from privtune.shared.errors import InvalidInput, JobNotFound

_MAX_PAGE = 100


def list_jobs(
    session: Session,
    owner: str,
    *,
    after: str | None,
    limit: int,
    status: Sequence[Status],
    metadata: Mapping[str, str],
) -> Page[JobRow]:
    """An owner's jobs after the job `after`, newest first; empty `status` and `metadata` select everything."""
    query = select(JobRow).where(JobRow.owner == owner).order_by(JobRow.number.desc())
    if status:
        query = query.where(JobRow.status.in_(_known(status)))
    for name, value in metadata.items():
        query = query.where(JobRow.labels[name].as_string() == value)
    if after is not None:
        query = query.where(JobRow.number < _number_of(session, after, owner))
    return _page(session, query, limit)


def count_jobs(session: Session) -> dict[tuple[str, str], int]:
    """Number of jobs by owner and status."""
    query = select(JobRow.owner, JobRow.status, func.count()).group_by(JobRow.owner, JobRow.status)
    return {(owner, status): count for owner, status, count in session.execute(query)}


def list_events(session: Session, job_id: str, *, after: int, limit: int, newest_first: bool) -> Page[EventRow]:
    """A job's events after the one numbered `after` in the order asked for; 0: from that order's beginning."""
    query = select(EventRow).where(EventRow.job_id == job_id)
    if newest_first:
        query = query.order_by(EventRow.seq.desc())
        query = query.where(EventRow.seq < after) if after else query
    else:
        query = query.order_by(EventRow.seq).where(EventRow.seq > after)
    find_job(session, job_id, None)
    return _page(session, query, limit)


def list_checkpoints(session: Session, job_id: str, *, after: int | None, limit: int) -> Page[CheckpointRow]:
    """A job's checkpoints before the step `after`, newest first."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == job_id).order_by(CheckpointRow.step.desc())
    if after is not None:
        query = query.where(CheckpointRow.step < after)
    find_job(session, job_id, None)
    return _page(session, query, limit)


def _page(session: Session, query: Select[Any], limit: int) -> Page[Any]:
    if not 1 <= limit <= _MAX_PAGE:
        raise InvalidInput(f"limit must be from 1 to {_MAX_PAGE}, not {limit}.", param="limit")
    rows = session.scalars(query.limit(limit + 1)).all()
    return Page(items=list(rows[:limit]), has_more=len(rows) > limit)


def _known(status: Sequence[Status]) -> Sequence[Status]:
    for name in status:
        if name not in STATUSES:
            raise InvalidInput(f"status: {name!r} is not one of {', '.join(STATUSES)}.", param="status")
    return status


def _number_of(session: Session, job_id: str, owner: str) -> int:
    try:
        return find_job(session, job_id, owner).number
    except JobNotFound as error:
        raise JobNotFound(f"after: there is no job {job_id[:64]!r} to continue after.", param="after") from error
