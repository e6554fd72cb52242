"""Jobs: the one place where their state changes. Called by REST from its thread pool and by the gateway from threads.

A closed laptop lid is `paused`, never `failed`: what the device loses it takes up again by itself. Only its owner's
own pause holds a job until `resume`. Heartbeats stay in memory; a change of state or a checkpoint stores them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, cast

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from privtune.cloud.db.store import CheckpointRow, EventRow, IdempotencyRow, JobRow, Store
from privtune.cloud.jobs.job_rows import (
    MAX_MESSAGE,
    WAITING,
    append_event,
    checked_document,
    cursor_of,
    event_view,
    find_job,
    known_request,
    new_row,
    now,
    page_limit,
    status_of,
    wanted_statuses,
)
from privtune.cloud.jobs.notify import Notifier, Subscription
from privtune.cloud.jobs.states import (
    FINAL,
    Checkpoint,
    Event,
    Job,
    JobError,
    Level,
    Page,
    Phase,
    Progress,
    Request,
    Status,
    check_move,
)
from privtune.shared.errors import JobConflict, PermissionDenied, SessionSuperseded
from privtune.shared.job_spec import JobSpec

__all__ = ["Checkpoint", "Event", "Job", "JobError", "Jobs", "Page", "Progress"]


class Jobs:
    """The job service. Thread-safe. `owner=None` means the operator or the gateway: every job."""

    def __init__(self, store: Store, *, max_active_per_owner: int = 100, notifier: Notifier | None = None) -> None:
        self._store = store
        self._max_active = max_active_per_owner
        self._notifier = notifier or Notifier()
        self._progress: dict[str, Progress] = {}
        self._requested: dict[str, Request | None] = {}
        self._lock = threading.Lock()

    # ---- making and reading

    def create(
        self,
        owner: str,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Job:
        """A new queued job, or the one that the same request with this key made before.

        Raises InvalidInput when the key came with another request, PermissionDenied over the owner's limit.
        """
        labels = dict(metadata or {})
        document = checked_document(spec)
        digest = hashlib.sha256(json.dumps([document, labels], sort_keys=True).encode()).hexdigest()
        with self._store.write() as session:
            known = known_request(session, owner, idempotency_key, digest)
            if known is not None:
                return self._view(find_job(session, known, owner))
            self._check_quota(session, owner)
            row = new_row(owner, document, labels)
            session.add(row)
            session.flush()
            if idempotency_key is not None:
                session.add(
                    IdempotencyRow(
                        owner=owner, key=idempotency_key, request_sha256=digest, job_id=row.id, created_at=now()
                    )
                )
            append_event(session, row, "info", f"The job was created; {row.reason}.")
        return self._view(row)

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """Raises JobNotFound, also for a job of somebody else."""
        with self._store.read() as session:
            return self._view(find_job(session, job_id, owner))

    def list(
        self,
        owner: str | None = None,
        *,
        after: str | None = None,
        limit: int = 20,
        status: Sequence[Status] | Status | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Page[Job]:
        """Newest first; `after` is the last id of the page before."""
        query = select(JobRow).order_by(JobRow.number.desc())
        if owner is not None:
            query = query.where(JobRow.owner == owner)
        if status:
            query = query.where(JobRow.status.in_(wanted_statuses(status)))
        for name, value in (metadata or {}).items():
            query = query.where(JobRow.labels[name].as_string() == value)
        with self._store.read() as session:
            if after is not None:
                query = query.where(JobRow.number < cursor_of(session, after, owner))
            rows = session.scalars(query.limit(page_limit(limit) + 1)).all()
            return Page(items=[self._view(row) for row in rows[:limit]], has_more=len(rows) > limit)

    def events(
        self, job_id: str, *, after: int = 0, limit: int = 20, owner: str | None = None, newest_first: bool = False
    ) -> Page[Event]:
        """Events behind `after` (a `seq`; 0: from the beginning), in the order asked for."""
        query = select(EventRow).where(EventRow.job_id == job_id)
        if newest_first:
            query = query.order_by(EventRow.seq.desc())
            query = query.where(EventRow.seq < after) if after else query
        else:
            query = query.order_by(EventRow.seq).where(EventRow.seq > after)
        with self._store.read() as session:
            find_job(session, job_id, owner)
            rows = session.scalars(query.limit(page_limit(limit) + 1)).all()
            return Page(items=[event_view(row) for row in rows[:limit]], has_more=len(rows) > limit)

    def checkpoints(
        self, job_id: str, *, after: int | None = None, limit: int = 20, owner: str | None = None
    ) -> Page[Checkpoint]:
        """Checkpoints, newest first; `after` is the last step of the page before."""
        query = select(CheckpointRow).where(CheckpointRow.job_id == job_id).order_by(CheckpointRow.step.desc())
        if after is not None:
            query = query.where(CheckpointRow.step < after)
        with self._store.read() as session:
            find_job(session, job_id, owner)
            rows = session.scalars(query.limit(page_limit(limit) + 1)).all()
            items = [Checkpoint(job_id=row.job_id, step=row.step, created_at=row.created_at) for row in rows[:limit]]
            return Page(items=items, has_more=len(rows) > limit)

    def subscribe(self, job_id: str) -> AbstractContextManager[Subscription]:
        """Wait for news of a job from the event loop; see `Notifier`."""
        return self._notifier.subscribe(job_id)

    def close(self) -> None:
        """Let go of everybody who waits for events."""
        self._notifier.close()

    # ---- what the owner asks for

    def pause(self, job_id: str, owner: str | None = None) -> Job:
        """Hold the job: at once, or at the next step boundary if it runs. Pausing twice changes nothing."""
        with self._change(job_id, owner) as (session, row):
            check_move(row.id, status_of(row), "paused")
            if row.status == "running":
                if row.requested == "cancel":
                    raise JobConflict(f"Job {row.id} is being cancelled; it can't be paused.")
                self._ask(session, row, "pause", "pausing", "pausing after the current step, as its owner asked")
            elif not row.held:
                row.held = True
                self._move(session, row, "paused", "held", "paused by its owner; resume it to go on")
        return self._view(row)

    def resume(self, job_id: str, owner: str | None = None) -> Job:
        """Let a paused job go on as soon as its device is there; takes back a pause that has not happened yet."""
        with self._change(job_id, owner) as (session, row):
            if row.status == "running" and row.requested == "pause":
                self._ask(session, row, None, "training", "training")
            elif row.status != "paused":
                raise JobConflict(f"Job {row.id} is {row.status}, not paused; there is nothing to resume.")
            else:
                row.held = False
                self._move(session, row, "queued", "waiting_for_device", f"resumed; {WAITING}")
        return self._view(row)

    def cancel(self, job_id: str, owner: str | None = None) -> Job:
        """End the job: at once, or at the next step boundary if it runs. Cancelling twice changes nothing."""
        with self._change(job_id, owner) as (session, row):
            if row.status == "cancelled":
                return self._view(row)
            check_move(row.id, status_of(row), "cancelled")
            if row.status == "running":
                self._ask(session, row, "cancel", "cancelling", "cancelling after the current step, as its owner asked")
            else:
                self._move(session, row, "cancelled", "cancelled", "cancelled by its owner")
        return self._view(row)

    # ---- what the gateway reports

    def next_epoch(self, job_id: str) -> int:
        """A session epoch larger than any before for this job, stored before it is used."""
        with self._change(job_id) as (_, row):
            row.session_epoch += 1
        return row.session_epoch

    def start(self, job_id: str, owner: str | None = None, session_epoch: int | None = None) -> Job:
        """A device's stream began: running. Raises JobConflict for a held or ended job, SessionSuperseded."""
        with self._change(job_id, owner, session_epoch) as (session, row):
            if row.held:
                raise JobConflict(f"Job {row.id} was paused by its owner. Resume it first: POST …/{row.id}/resume.")
            again = row.started_at is not None
            row.started_at = row.started_at or now()
            phase: Phase = "pausing" if row.requested == "pause" else "training"
            phase = "cancelling" if row.requested == "cancel" else phase
            told = "The device is back; training goes on." if again else "The device connected; training begins."
            self._move(session, row, "running", phase, "training", told=told)
            with self._lock:
                self._requested[row.id] = cast(Request | None, row.requested)
        return self._view(row)

    def requested(self, job_id: str) -> Request | None:
        """What a running job was asked to do at its next step boundary."""
        with self._lock:
            if job_id in self._requested:
                return self._requested[job_id]
        return self.get(job_id).requested

    def progress(self, job_id: str, *, step: int, total_steps: int, **known: Any) -> None:
        """Remember how far a job is; `known` are further fields of `Progress`. In memory only."""
        with self._lock:
            before = self._progress.get(job_id, Progress())
            self._progress[job_id] = replace(before, step=step, total_steps=total_steps, updated_at=now(), **known)

    def record_checkpoint(self, job_id: str, step: int, *, keep: int | None = None) -> None:
        """A checkpoint of `step` is on disk. `keep`: forget all but the newest so many (their files are gone)."""
        with self._change(job_id) as (session, row):
            session.merge(CheckpointRow(job_id=job_id, step=step, created_at=now()))
            session.flush()
            self._store_progress(row)
            if keep is not None:
                steps = select(CheckpointRow.step).where(CheckpointRow.job_id == job_id)
                oldest = session.scalar(steps.order_by(CheckpointRow.step.desc()).offset(keep - 1).limit(1)) or 0
                session.execute(
                    delete(CheckpointRow).where(CheckpointRow.job_id == job_id, CheckpointRow.step < oldest)
                )
            data = {"step": step} | row.progress
            append_event(session, row, "info", f"Checkpoint after step {step}.", data, kind="metrics")

    def add_event(self, job_id: str, level: Level, message: str, data: Mapping[str, Any] | None = None) -> Event:
        """Tell the owner something about the job."""
        with self._change(job_id) as (session, row):
            return event_view(append_event(session, row, level, message, data))

    def disconnected(self, job_id: str, reason: str, session_epoch: int | None = None) -> Job:
        """The stream is gone. What the owner had asked for happens now; else the job waits for its device.

        A job that is not running, or that a newer session holds, stays as it is.
        """
        with self._change(job_id) as (session, row):
            stale = session_epoch is not None and session_epoch < row.session_epoch
            if row.status != "running" or stale:
                return self._view(row)
            if row.requested == "cancel":
                self._move(session, row, "cancelled", "cancelled", "cancelled by its owner")
            elif row.requested == "pause":
                row.held = True
                self._move(session, row, "paused", "held", "paused by its owner; resume it to go on")
            else:
                self._move(session, row, "paused", "waiting_for_device", reason, level="warn")
        return self._view(row)

    def paused(self, job_id: str, reason: str, session_epoch: int | None = None) -> Job:
        """The job stopped at a step boundary. It stays held only if its owner had asked for it over REST."""
        with self._change(job_id, session_epoch=session_epoch) as (session, row):
            row.held = row.requested == "pause"
            self._move(session, row, "paused", "held" if row.held else "waiting_for_device", reason)
        return self._view(row)

    def cancelled(self, job_id: str, reason: str, session_epoch: int | None = None) -> Job:
        """The job stopped at a step boundary for good."""
        with self._change(job_id, session_epoch=session_epoch) as (session, row):
            self._move(session, row, "cancelled", "cancelled", reason)
        return self._view(row)

    def succeed(
        self, job_id: str, *, adapter_sha256: str | None, tokens: int, steps: int, session_epoch: int | None = None
    ) -> Job:
        """The adapter is written and the job is done."""
        with self._change(job_id, session_epoch=session_epoch) as (session, row):
            row.adapter_sha256, row.tokens = adapter_sha256, tokens
            self._move(session, row, "succeeded", "done", f"done after {steps} steps; the adapter is ready")
        return self._view(row)

    def fail(self, job_id: str, code: str, message: str, session_epoch: int | None = None) -> Job:
        """The job can't go on. `code` is a reason of privtune.shared.errors, `message` is public."""
        with self._change(job_id, session_epoch=session_epoch) as (session, row):
            row.error_code, row.error_message = code[:64], message[:MAX_MESSAGE]
            self._move(session, row, "failed", "failed", message[:MAX_MESSAGE], level="error")
        return self._view(row)

    def recover(self) -> int:
        """At server start: jobs that a crash left running wait for their devices. Returns how many."""
        with self._store.read() as session:
            ids = list(session.scalars(select(JobRow.id).where(JobRow.status == "running")))
        for job_id in ids:
            self.disconnected(job_id, "the cloud restarted; the device resumes it by itself")
        return len(ids)

    # ---- inside

    @contextmanager
    def _change(
        self, job_id: str, owner: str | None = None, session_epoch: int | None = None
    ) -> Iterator[tuple[Session, JobRow]]:
        """One job's row under the write lock; listeners are told after the commit."""
        with self._store.write() as session:
            row = find_job(session, job_id, owner, lock=True)
            if session_epoch is not None and session_epoch != row.session_epoch:
                raise SessionSuperseded("A newer session holds this job; this one ends here.")
            yield session, row
        self._notifier.publish(job_id)

    def _move(
        self,
        session: Session,
        row: JobRow,
        status: Status,
        phase: Phase,
        reason: str,
        *,
        level: Level = "info",
        told: str | None = None,
    ) -> None:
        check_move(row.id, status_of(row), status)
        row.status, row.phase, row.reason = status, phase, reason[:MAX_MESSAGE]
        if status != "running":
            row.requested = None
            with self._lock:
                self._requested.pop(row.id, None)
        if status in FINAL:
            row.finished_at = now()
            row.held = False
        self._store_progress(row)
        append_event(session, row, level, told or f"The job is {status}: {reason}.", {"status": status, "phase": phase})

    def _ask(self, session: Session, row: JobRow, request: Request | None, phase: Phase, reason: str) -> None:
        if row.requested == request:
            return
        row.requested, row.phase, row.reason = request, phase, reason
        with self._lock:
            self._requested[row.id] = request
        told = f"The job is {reason}." if request else "The pause was taken back; training goes on."
        append_event(session, row, "info", told, {"phase": phase})

    def _store_progress(self, row: JobRow) -> None:
        with self._lock:
            progress = self._progress.get(row.id)
            if row.status in FINAL:
                self._progress.pop(row.id, None)
        if progress is not None:
            row.progress = progress.as_dict()

    def _check_quota(self, session: Session, owner: str) -> None:
        active = select(func.count()).where(JobRow.owner == owner, JobRow.status.not_in(FINAL))
        if (session.scalar(active) or 0) >= self._max_active:
            raise PermissionDenied(
                f"You have {self._max_active} unfinished jobs, the most that this cloud allows. Cancel one first."
            )

    def _view(self, row: JobRow) -> Job:
        with self._lock:
            progress = self._progress.get(row.id)
        failed = row.error_code is not None
        return Job(
            id=row.id,
            owner=row.owner,
            spec=JobSpec.model_validate_json(row.spec),
            status=status_of(row),
            phase=cast(Phase, row.phase),
            reason=row.reason,
            requested=cast(Request | None, row.requested),
            held=row.held,
            metadata=dict(row.labels),
            session_epoch=row.session_epoch,
            progress=progress or Progress(**row.progress),
            tokens=row.tokens,
            adapter_sha256=row.adapter_sha256,
            error=JobError(code=row.error_code or "", message=row.error_message or "") if failed else None,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
