"""Rows of leases, inside a transaction that writes."""

from __future__ import annotations

from sqlalchemy.orm import Session

from privtune.cloud.db.tables import JobRow, LeaseRow
from privtune.cloud.jobs.job_rows import now
from privtune.shared.errors import JobHeld, SessionSuperseded

SUPERSEDED = "a newer session holds this job; this one ends here"


def check_token(session: Session, row: JobRow, token: int) -> LeaseRow:
    """The lease that `token` stands for. Raises SessionSuperseded once it has passed to a newer session, or ended."""
    lease = session.get(LeaseRow, row.id)
    if lease is None or lease.token != token:
        raise SessionSuperseded(SUPERSEDED)
    return lease


def check_free(session: Session, row: JobRow, holder: str) -> LeaseRow | None:
    """The job's lease, if it had one: the holder's own, or one that has run out. Raises JobHeld for another's."""
    lease = session.get(LeaseRow, row.id)
    if lease is not None and lease.holder != holder and lease.until > now():
        raise JobHeld(
            f"Another device holds job {row.id}. It is free {lease.until - now()} s from now if that device stays "
            f"away, or at its owner's word: privtune jobs release {row.id}"
        )
    return lease


def grant(session: Session, row: JobRow, lease: LeaseRow | None, holder: str, until: int) -> int:
    """Give the job to a device, and return the token: larger than that of any session of the job before."""
    row.session_epoch += 1
    if lease is None:
        session.add(LeaseRow(job_id=row.id, holder=holder, token=row.session_epoch, until=until))
    else:
        lease.holder, lease.token, lease.until = holder, row.session_epoch, until
    return row.session_epoch


def extend(session: Session, row: JobRow, until: int) -> None:
    """A sign of life: the lease runs until then at least."""
    lease = session.get(LeaseRow, row.id)
    if lease is not None:
        lease.until = max(lease.until, until)


def shorten(session: Session, row: JobRow, until: int) -> None:
    """The lease runs until then at most."""
    lease = session.get(LeaseRow, row.id)
    if lease is not None:
        lease.until = min(lease.until, until)
