"""Jobs: the one place where their state changes. Called from REST's thread pool and from the gateway's threads.

A closed laptop lid makes a job `paused`, never `failed`: it continues by itself when its device is back. Only the
owner's own pause holds it until `resume`. Heartbeats stay in memory; checkpoints and changes of state store them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import IdempotencyRow, JobRow
from privtune.cloud.jobs.changes import Changes
from privtune.cloud.jobs.deletions import Deletions
from privtune.cloud.jobs.homes import Homes
from privtune.cloud.jobs.job_files import JobFiles
from privtune.cloud.jobs.job_rows import (
    MAX_MESSAGE,
    WAITING,
    add_checkpoint,
    append_event,
    check_quota,
    checked_document,
    drop_discarded,
    event_view,
    find_job,
    job_view,
    known_request,
    new_row,
    now,
    requested_of,
    status_of,
    stored_curve,
)
from privtune.cloud.jobs.lease_rows import check_free, check_token, extend, shorten
from privtune.cloud.jobs.leases import CANCEL_S, LEASE_S, Leases
from privtune.cloud.jobs.listings import count_jobs, list_checkpoints, list_events, list_jobs
from privtune.cloud.jobs.live import LiveState
from privtune.cloud.jobs.notify import Notifier, Subscription
from privtune.cloud.jobs.progress_curve import ProgressPoint
from privtune.cloud.jobs.states import (
    Checkpoint,
    Event,
    Job,
    JobProgress,
    Level,
    Page,
    Phase,
    Request,
    Status,
    check_move,
)
from privtune.cloud.limits import OwnerLimits
from privtune.shared.errors import JobConflict
from privtune.shared.job_spec import JobSpec
from privtune.shared.wording import counted


class Jobs:
    """The job service. Thread-safe. `owner` None: the operator or the gateway, for whom every job exists.

    limits: of owners; None: the usual ones.
    files: where jobs leave their files; None: they leave none.
    """

    def __init__(
        self,
        store: Store,
        *,
        limits: OwnerLimits | None = None,
        notifier: Notifier | None = None,
        files: JobFiles | None = None,
        lease_s: int = LEASE_S,
        give_up_days: float | None = None,
    ) -> None:
        self._store = store
        self.limits = limits or OwnerLimits(store)
        self.deletions, self.homes = Deletions(store, files), Homes(store)
        self._notifier = notifier or Notifier()
        self._live = LiveState()
        self._changes = Changes(store, self._live, self._notifier)
        self.leases = Leases(store, self._changes, self._live, lease_s=lease_s, give_up_days=give_up_days)

    # ---- creating and reading

    def create(
        self,
        owner: str,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Job:
        """A new queued job, or the one that the same request with this key created before.

        Raises JobConflict when the key was used for another request, PermissionDenied over the owner's limit.
        """
        labels = dict(metadata or {})
        document = checked_document(spec)
        most = self.limits.of(owner).unfinished_jobs
        digest = hashlib.sha256(json.dumps([document, labels], sort_keys=True).encode()).hexdigest()
        with self._store.write() as session:
            known = known_request(session, owner, idempotency_key, digest)
            if known is not None:
                return self._view(find_job(session, known, owner))
            check_quota(session, owner, most)
            drop_discarded(session, owner)
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
        """A snapshot of a job. Raises JobNotFound, also for a job of another owner."""
        with self._store.read() as session:
            return self._view(find_job(session, job_id, owner))

    def list(
        self,
        owner: str,
        *,
        after: str | None = None,
        limit: int = 20,
        status: Sequence[Status] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Page[Job]:
        """A page of an owner's jobs, newest first; `after`: the last id before. Raises InvalidInput, JobNotFound."""
        with self._store.read() as session:
            page = list_jobs(session, owner, after=after, limit=limit, status=status or (), metadata=metadata or {})
            return Page(items=[self._view(row) for row in page.items], has_more=page.has_more)

    def count(self) -> dict[tuple[str, str], int]:
        """Number of jobs by owner and status, of all owners."""
        with self._store.read() as session:
            return count_jobs(session)

    def events(self, job_id: str, *, after: int = 0, limit: int = 20, newest_first: bool = False) -> Page[Event]:
        """Events after the one numbered `after` in the order asked for; 0: from that order's beginning."""
        with self._store.read() as session:
            page = list_events(session, job_id, after=after, limit=limit, newest_first=newest_first)
            return Page(items=[event_view(row) for row in page.items], has_more=page.has_more)

    def curve(self, job_id: str, owner: str | None = None) -> tuple[Sequence[ProgressPoint], Mapping[str, str]]:
        """The progress of a job over its steps, and what its device says of it. Raises JobNotFound."""
        with self._store.read() as session:
            find_job(session, job_id, owner)
            if (known := self._live.curve(job_id)) is not None:
                return known
            curve = stored_curve(session, job_id)
            return curve.points, curve.said

    def checkpoints(self, job_id: str, *, after: int | None = None, limit: int = 20) -> Page[Checkpoint]:
        """Checkpoints, newest first; `after` is the last step of the page before."""
        with self._store.read() as session:
            page = list_checkpoints(session, job_id, after=after, limit=limit)
            items = [Checkpoint(job_id=row.job_id, step=row.step, created_at=row.created_at) for row in page.items]
            return Page(items=items, has_more=page.has_more)

    def subscribe(self, job_id: str, owner: str) -> AbstractContextManager[Subscription]:
        """Wait for changes of a job on the event loop; see `Notifier`."""
        return self._notifier.subscribe(job_id, owner)

    def close(self) -> None:
        """Wake all subscribers for the last time."""
        self._notifier.close()

    def when_ended(self, act: Callable[[str, int], None]) -> None:
        """Call `act` for every job that ends or is taken from its device: its id, and its newest session epoch then.

        On the thread that does it, perhaps more than once a job.
        """
        self._changes.when_ended = act

    # ---- requests of the owner

    def pause(self, job_id: str, owner: str | None = None) -> Job:
        """Hold the job: at once, or at the next step boundary if it runs. Pausing twice changes nothing."""
        with self._changes.begin(job_id, owner) as (session, row):
            check_move(row.id, status_of(row), "paused")
            if row.status == "running":
                if row.requested == "cancel":
                    raise JobConflict(f"Job {row.id} is being cancelled; it can't be paused.")
                self._changes.ask(
                    session, row, "pause", "pausing", "pausing after the current step, as its owner asked"
                )
            elif not row.held:
                row.held = True
                self._changes.move(session, row, "paused", "held", "paused by its owner; resume it to continue")
        return self._view(row)

    def resume(self, job_id: str, owner: str | None = None) -> Job:
        """Let a paused job continue once its device connects; withdraws a pause that has not taken effect yet."""
        with self._changes.begin(job_id, owner) as (session, row):
            if row.status == "running" and row.requested == "pause":
                self._changes.ask(session, row, None, "training", "training")
            elif row.status != "paused":
                raise JobConflict(f"Job {row.id} is {row.status}, not paused; there is nothing to resume.")
            else:
                row.held = False
                self._changes.move(session, row, "queued", "waiting_for_device", f"resumed; {WAITING}")
        return self._view(row)

    def cancel(self, job_id: str, owner: str | None = None) -> Job:
        """End the job: at once, or at the next step boundary if it runs, or CANCEL_S from now where none comes.

        Cancelling twice changes nothing.
        """
        with self._changes.begin(job_id, owner) as (session, row):
            if row.status == "cancelled":
                return self._view(row)
            check_move(row.id, status_of(row), "cancelled")
            if row.status == "running":
                self._changes.ask(
                    session, row, "cancel", "cancelling", "cancelling after the current step, as its owner asked"
                )
                shorten(session, row, now() + CANCEL_S)
            else:
                self._changes.move(session, row, "cancelled", "cancelled", "cancelled by its owner")
        return self._view(row)

    # ---- reports of the gateway. token: that the session got from `leases`; one that is no longer valid raises
    # SessionSuperseded, and nothing changes.

    def next_epoch(self, job_id: str) -> int:
        """A session epoch larger than any before it for this job, for a session that does not train."""
        with self._changes.begin(job_id) as (_, row):
            row.session_epoch += 1
        return row.session_epoch

    def start(self, job_id: str, token: int) -> Job:
        """A device's stream began: the job runs. Raises JobConflict for a job that is held or has ended."""
        with self._changes.begin(job_id, token=token) as (session, row):
            if row.held:
                raise JobConflict(f"Job {row.id} was paused by its owner. Resume it first: POST …/{row.id}/resume.")
            again = row.started_at is not None
            row.started_at = row.started_at or now()
            phase: Phase = "pausing" if row.requested == "pause" else "training"
            phase = "cancelling" if row.requested == "cancel" else phase
            message = "The device is back; training continues." if again else "The device connected; training begins."
            self._changes.move(session, row, "running", phase, "training", message=message)
            extend(session, row, now() + self.leases.lease_s)
            self._live.set_request(row.id, requested_of(row))
            self._live.begin_curve(row.id, lambda: stored_curve(session, row.id))
        return self._view(row)

    def requested(self, job_id: str) -> Request | None:
        """What a running job was asked to do at its next step boundary."""
        try:
            return self._live.request(job_id)
        except KeyError:
            return self.get(job_id).requested

    def progress(self, job_id: str, progress: JobProgress) -> None:
        """Remember how far a job is, in memory only."""
        self._live.set_progress(job_id, replace(progress, updated_at=now()))

    def share(
        self, job_id: str, token: int, step: int, *, figures: Mapping[str, float], said: Mapping[str, str]
    ) -> None:
        """Remember what the owner of a job's device shares of it; see `ProgressCurve.share`."""
        with self._store.read() as session:
            check_token(session, find_job(session, job_id, None), token)
            self._live.share(job_id, lambda: stored_curve(session, job_id), step, figures, said)

    def record_checkpoint(self, job_id: str, token: int, step: int) -> None:
        """A checkpoint of `step` is on disk: store it, and the progress with it."""
        with self._changes.begin(job_id, token=token) as (session, row):
            add_checkpoint(session, job_id, step)
            self._changes.store_progress(session, row)
            data = {"step": step} | row.progress
            append_event(session, row, "info", f"Checkpoint after step {step}.", data, kind="metrics")

    def add_event(self, job_id: str, level: Level, message: str) -> None:
        """Add an event for the owner to read; the job's state stays as it is."""
        with self._changes.begin(job_id) as (session, row):
            append_event(session, row, level, message)

    def disconnected(self, job_id: str, token: int, reason: str) -> Job:
        """The stream has ended; see `Changes.lost`. The job stays its device's until the lease runs out."""
        with self._changes.begin(job_id, token=token) as (session, row):
            self._changes.lost(session, row, reason)
        return self._view(row)

    def paused(self, job_id: str, token: int, reason: str) -> Job:
        """The job stopped at a step boundary. It is held only if its owner had asked for the pause over REST."""
        with self._changes.begin(job_id, token=token) as (session, row):
            row.held = row.requested == "pause"
            self._changes.move(session, row, "paused", "held" if row.held else "waiting_for_device", reason)
        return self._view(row)

    def cancelled(self, job_id: str, token: int, reason: str) -> Job:
        """The job stopped at a step boundary and is cancelled."""
        with self._changes.begin(job_id, token=token) as (session, row):
            self._changes.move(session, row, "cancelled", "cancelled", reason)
        return self._view(row)

    def succeed(self, job_id: str, token: int, *, adapter_sha256: str | None, tokens: int, steps: int) -> Job:
        """The job is done and its adapter written.

        adapter_sha256: of its weights; None where they are on the device.
        tokens: released rows over all epochs.
        steps: optimiser steps applied.
        """
        with self._changes.begin(job_id, token=token) as (session, row):
            row.adapter_sha256, row.tokens = adapter_sha256, tokens
            self._changes.move(
                session, row, "succeeded", "done", f"done after {counted(steps, 'step')}; the adapter is ready"
            )
        return self._view(row)

    def fail(self, job_id: str, token: int, code: str, message: str) -> Job:
        """The job ends as failed. `code` is a reason of `privtune.shared.errors`; `message` is public."""
        with self._changes.begin(job_id, token=token) as (session, row):
            self._changes.fail(session, row, code, message)
        return self._view(row)

    def refuse(self, job_id: str, code: str, message: str, *, holder: str, owner: str | None = None) -> Job:
        """A device refuses the job, which has failed then. Refusing twice for the same reason changes nothing.

        holder: the device's name in this job; "" for one that has not begun it.

        Raises JobConflict while another device holds the job.
        """
        with self._changes.begin(job_id, owner) as (session, row):
            if row.status == "failed" and (row.error_code, row.error_message) == (code[:64], message[:MAX_MESSAGE]):
                return self._view(row)
            check_free(session, row, holder)
            self._changes.fail(session, row, code, message)
        return self._view(row)

    # ---- internals

    def _view(self, row: JobRow) -> Job:
        return job_view(row, self._live.progress(row.id))
