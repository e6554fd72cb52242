"""A job belongs to one device at a time: by a lease in the database, which its stream renews while it lives.

A device claims the job with each session and gets a token; whatever a session writes names the token, so that a newer
claim, in whichever process on this database, fences the older session off. The device that holds the job may claim it
again at any time, another one only once the lease has run out, or when the owner takes the job back (`release`).

Renewal is by time, not by message: one look a second for all streams of a process. Between two looks a session goes by
this process's memory, for two thirds of a lease at most, so clocks of processes may differ by the last third.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, cast

from sqlalchemy import CursorResult, select, update

from privtune.cloud.audit_log.record import record
from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import JobRow, LeaseRow
from privtune.cloud.jobs.changes import Changes
from privtune.cloud.jobs.job_rows import job_view, now, status_of
from privtune.cloud.jobs.lease_rows import SUPERSEDED, check_free, grant
from privtune.cloud.jobs.live import LiveState
from privtune.cloud.jobs.states import FINAL, Job, Request, Status
from privtune.shared.errors import (
    CloudUnreachable,
    JobCancelled,
    JobConflict,
    JobFailed,
    JobNotFound,
    PrivTuneError,
    SessionSuperseded,
)

LEASE_S = 60
CANCEL_S = 5  # a running job that its owner cancels ends within this time, whatever its device and the models do
AWAY = "its device went away; the job continues by itself when the device is back"


class Leases:
    """Who holds which job. Thread-safe.

    lease_s: seconds for which a job stays its device's after a sign of life.
    give_up_days: days after which a job that waits for the device that began it has failed; None: it waits for ever.
    """

    def __init__(
        self,
        store: Store,
        changes: Changes,
        live: LiveState,
        *,
        lease_s: int = LEASE_S,
        give_up_days: float | None = None,
    ) -> None:
        self._store, self._changes, self._live = store, changes, live
        self.lease_s, self._give_up_days = lease_s, give_up_days

    def claim(self, job_id: str, holder: str) -> int:
        """Give the job to a device and return its token; the session before ends, and what was asked of it is done.

        Raises JobConflict while another device holds it, or for a job that has ended.
        """
        token = 0
        with self._changes.begin(job_id) as (session, row):
            lease = check_free(session, row, holder)
            self._changes.lost(session, row, "its device opened it again; it continues with the new session")
            if row.status not in FINAL:
                token = grant(session, row, lease, holder, now() + self.lease_s)
            self._live.drop_lease(job_id)
        check_unfinished(row.id, status_of(row))
        return token

    def release(self, job_id: str, owner: str | None = None, why: str = "taken from its device by its owner") -> Job:
        """Take the job from the device that holds it, so that any device may claim it. A held job stays held.

        why: the beginning of the reason that its state shows.

        Raises JobConflict for a job that has ended.
        """
        with self._changes.begin(job_id, owner) as (session, row):
            check_unfinished(row.id, status_of(row))
            lease = session.get(LeaseRow, row.id)
            if lease is not None:
                session.delete(lease)
            self._live.drop_lease(job_id)
            reason = f"{why}; waiting for a device that holds the data"
            self._changes.lost(session, row, reason)
            if row.status == "paused" and not row.held:
                self._changes.move(session, row, "queued", "waiting_for_device", reason)
            if lease is not None:
                record(session, "lease.released", owner=row.owner, target=row.id, holder=lease.holder)
        self._changes.when_ended(job_id, row.session_epoch)
        return job_view(row, self._live.progress(job_id))

    def check(self, job_id: str, token: int) -> None:
        """Whether this session holds its running job: from memory, and from the database when that is old.

        Raises as `keep` says.
        """
        if not self._live.holds(job_id, token) and (lost := self.keep({job_id: token}).get(job_id)) is not None:
            raise lost

    def keep(self, tokens: Mapping[str, int]) -> dict[str, PrivTuneError]:
        """Renew the leases of running jobs whose streams live, and note what their owners ask for in any process.

        tokens: by job.

        Returns, for each job that its session no longer holds, what to say to the device: SessionSuperseded,
        JobCancelled, JobConflict for a job that has ended otherwise, JobNotFound for one that was deleted,
        CloudUnreachable for one to open again.
        """
        held, due, lost = (LeaseRow.token, LeaseRow.until), dict[str, tuple[int, int]](), dict[str, PrivTuneError]()
        query = select(JobRow.id, JobRow.status, JobRow.requested, *held).outerjoin(LeaseRow)
        with self._store.read() as session:
            found = {row.id: row for row in session.execute(query.where(JobRow.id.in_(tokens)))} if tokens else {}
        for job_id, token in tokens.items():
            row = found.get(job_id)
            if row is None or row.token != token or row.status != "running":
                status, superseded = (None, False) if row is None else (row.status, row.token != token)
                if status != "succeeded":  # that stream ends by itself
                    lost[job_id] = _why_lost(job_id, status, superseded=superseded)
                continue
            self._live.set_request(job_id, cast(Request | None, row.requested))
            if row.requested == "cancel":
                continue  # `cancel` has shortened the lease
            if 3 * (row.until - now()) < 2 * self.lease_s:
                due[job_id] = token, row.until
            else:
                self._live.set_lease(job_id, token, time.monotonic() + self.lease_s / 3)
        if due:
            self._renew(due)
        return lost

    def _renew(self, due: Mapping[str, tuple[int, int]]) -> None:
        """Renew leases that are as they were seen: by job, token and end."""
        renewed, began = dict[str, int](), time.monotonic()
        with self._store.write() as session:
            for job_id, (token, until) in sorted(due.items()):
                same = (LeaseRow.job_id == job_id, LeaseRow.token == token, LeaseRow.until == until)
                done = session.execute(update(LeaseRow).where(*same).values(until=now() + self.lease_s))
                if cast(CursorResult[Any], done).rowcount:
                    renewed[job_id] = token
        for job_id, token in renewed.items():
            self._live.set_lease(job_id, token, began + 2 * self.lease_s / 3)

    def deleted(self, job_ids: Collection[str]) -> set[str]:
        """Which of these jobs are gone."""
        with self._store.read() as session:
            there = set(session.scalars(select(JobRow.id).where(JobRow.id.in_(job_ids)))) if job_ids else set()
        return set(job_ids) - there

    def reap(self) -> None:
        """Let running jobs whose leases have run out wait for their devices, and give up those that waited too long.

        What the owner had asked for takes effect.
        """
        alive = select(LeaseRow).where(LeaseRow.job_id == JobRow.id, LeaseRow.until >= now()).exists()
        expired = select(JobRow.id).where(JobRow.status == "running", ~alive)
        with self._store.read() as session:
            gone, given_up = list(session.scalars(expired)), list[str]()
            if self._give_up_days is not None:
                waiting = select(JobRow.id).join(LeaseRow).where(JobRow.status == "paused", ~JobRow.held)
                too_long = LeaseRow.until < now() - self._give_up_days * 86_400
                given_up = list(session.scalars(waiting.where(too_long)))
        for job_id in (*gone, *given_up):
            with suppress(JobNotFound), self._changes.begin(job_id) as (session, row):
                lease = session.get(LeaseRow, job_id)
                if lease is not None and lease.until >= now():
                    continue  # claimed or renewed meanwhile
                self._changes.lost(session, row, AWAY)
                if job_id in given_up and row.status == "paused" and not row.held:
                    away = f"its device has been away for more than {self._give_up_days:g} days"
                    self._changes.fail(session, row, JobFailed.reason, away)


def check_unfinished(job_id: str, status: Status) -> None:
    """Raises JobConflict for a job that has ended."""
    if status in FINAL:
        raise JobConflict(f"job {job_id} is {status} and can't be trained any more; submit a new one")


def _why_lost(job_id: str, status: Status | None, *, superseded: bool) -> PrivTuneError:
    if status == "cancelled":
        return JobCancelled("the job was cancelled")
    if status is None:
        return JobNotFound("this job was deleted by its owner")
    if status in FINAL:
        return JobConflict(f"job {job_id} is {status} and can't be trained any more; submit a new one")
    if superseded:
        return SessionSuperseded(SUPERSEDED)
    return CloudUnreachable("the cloud took this device for gone; the job continues when it is opened again")
