"""Who holds a job: one device at a time, in every process on one database."""

import types

import pytest
from sqlalchemy import delete, event, select

from privtune.cloud.db.tables import LeaseRow
from privtune.cloud.jobs.leases import AWAY, CANCEL_S, LEASE_S
from privtune.cloud.jobs.live import LiveState
from privtune.cloud.jobs.service import Jobs
from privtune.shared.errors import CloudUnreachable, JobCancelled, JobConflict, JobNotFound, SessionSuperseded
from tests.support.leases import HOLDER, OTHER, begin


class Clock:
    """The wall clock and the monotonic one."""

    def __init__(self, patch):
        self.now = 1_000_000.0
        patch.setattr("privtune.cloud.jobs.job_rows.time", types.SimpleNamespace(time=lambda: self.now))
        for module in ("live", "leases"):
            ticking = types.SimpleNamespace(monotonic=lambda: self.now)
            patch.setattr(f"privtune.cloud.jobs.{module}.time", ticking)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def elsewhere(another):
    """The same jobs in another process."""
    return Jobs(another)


@pytest.fixture
def job_id(jobs, spec):
    return jobs.create("alice", spec).id


REPORTS = {
    "start": lambda jobs, job_id, token: jobs.start(job_id, token),
    "checkpoint": lambda jobs, job_id, token: jobs.record_checkpoint(job_id, token, 4),
    "succeed": lambda jobs, job_id, token: jobs.succeed(job_id, token, adapter_sha256="a" * 64, tokens=1, steps=1),
    "fail": lambda jobs, job_id, token: jobs.fail(job_id, token, "NON_FINITE", "no"),
    "paused": lambda jobs, job_id, token: jobs.paused(job_id, token, "no"),
    "cancelled": lambda jobs, job_id, token: jobs.cancelled(job_id, token, "no"),
    "disconnected": lambda jobs, job_id, token: jobs.disconnected(job_id, token, "no"),
    "a step": lambda jobs, job_id, token: jobs.leases.check(job_id, token),
}


@pytest.mark.parametrize("how", ["same device", "run out", "released"])
def test_nothing_that_an_older_session_reports_counts(jobs, elsewhere, job_id, clock, how):
    old = begin(jobs, job_id)
    jobs.leases.check(job_id, old)
    clock.now += LEASE_S + 1 if how == "run out" else LEASE_S - 1
    if how == "released":
        elsewhere.leases.release(job_id, "alice")
    new = begin(elsewhere, job_id, HOLDER if how == "same device" else OTHER)
    assert new > old
    before, told = elsewhere.get(job_id), len(elsewhere.events(job_id).items)
    for report in REPORTS.values():
        with pytest.raises(SessionSuperseded):
            report(jobs, job_id, old)
        assert (elsewhere.get(job_id), len(elsewhere.events(job_id).items)) == (before, told)
    elsewhere.leases.check(job_id, new)


def test_another_device_waits_until_the_lease_has_run_out(jobs, elsewhere, job_id, clock):
    token = begin(jobs, job_id)
    for _ in range(4):  # as long as the stream lives
        clock.now += LEASE_S / 2
        assert jobs.leases.keep({job_id: token}) == {}
        elsewhere.leases.reap()
        with pytest.raises(JobConflict, match=f"privtune jobs release {job_id}"):
            elsewhere.leases.claim(job_id, OTHER)
        with pytest.raises(JobConflict, match="Another device"):
            elsewhere.refuse(job_id, "POLICY_REFUSED", "not here", holder="")
    assert jobs.get(job_id).status == "running"
    clock.now += LEASE_S + 1
    assert elsewhere.leases.claim(job_id, OTHER) > token


def test_a_running_job_whose_device_is_gone_says_so_and_waits_for_it(jobs, elsewhere, job_id, clock):
    begin(jobs, job_id)
    elsewhere.leases.reap()
    assert jobs.get(job_id).status == "running", "it is another process's, and may live"
    clock.now += LEASE_S + 1
    elsewhere.leases.reap()
    job = jobs.get(job_id)
    assert (job.status, job.phase, job.reason, job.held) == ("paused", "waiting_for_device", AWAY, False)
    assert begin(jobs, job_id)
    assert jobs.get(job_id).status == "running"


def test_a_running_job_without_a_lease_waits_too(store, jobs, job_id):
    begin(jobs, job_id)
    with store.write() as session:
        session.execute(delete(LeaseRow))
    jobs.leases.reap()
    assert jobs.get(job_id).phase == "waiting_for_device"


def test_a_process_that_slept_goes_on_only_if_nobody_took_the_job(jobs, elsewhere, job_id, clock):
    token = begin(jobs, job_id)
    clock.now += 10 * LEASE_S
    jobs.leases.check(job_id, token)
    clock.now += 10 * LEASE_S
    elsewhere.leases.reap()
    with pytest.raises(CloudUnreachable, match="opened again"):
        jobs.leases.check(job_id, token)
    begin(elsewhere, job_id, OTHER)
    with pytest.raises(SessionSuperseded):
        jobs.leases.check(job_id, token)


def test_messages_cost_no_query(store, jobs, job_id):
    token = begin(jobs, job_id)
    jobs.leases.check(job_id, token)
    statements = []
    event.listen(store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for _ in range(100):
        jobs.leases.check(job_id, token)
    assert statements == []


def test_the_owner_takes_a_job_back(jobs, job_id):
    with pytest.raises(JobNotFound):
        jobs.leases.release(job_id, "mallory")
    begin(jobs, job_id)
    job = jobs.leases.release(job_id, "alice")
    assert (job.status, job.phase) == ("queued", "waiting_for_device")
    begin(jobs, job_id, OTHER)
    jobs.pause(job_id)
    assert jobs.leases.release(job_id).held, "what was asked for takes effect, and holds"
    jobs.cancel(job_id)
    with pytest.raises(JobConflict, match="cancelled"):
        jobs.leases.release(job_id)


@pytest.mark.parametrize("stream", ["lives", "is gone"])
def test_a_cancelled_job_ends_within_seconds_whatever_its_device_does(jobs, elsewhere, job_id, clock, stream):
    token = begin(jobs, job_id)
    elsewhere.cancel(job_id)
    for _ in range(CANCEL_S + 2):
        clock.now += 1
        if stream == "lives":
            assert isinstance(jobs.leases.keep({job_id: token}).get(job_id), JobCancelled | None)
            assert jobs.requested(job_id) in ("cancel", None)
        elsewhere.leases.reap()
    assert jobs.get(job_id).status == "cancelled"
    with pytest.raises(JobCancelled):
        jobs.leases.check(job_id, token)


def test_a_cancel_between_look_and_renewal_is_not_undone(jobs, elsewhere, job_id, clock, monkeypatch):
    token = begin(jobs, job_id)
    clock.now += LEASE_S / 2
    with monkeypatch.context() as patch:
        patch.setattr(LiveState, "set_request", lambda *_: patch.undo() or elsewhere.cancel(job_id))
        jobs.leases.keep({job_id: token})
    clock.now += CANCEL_S + 1
    jobs.leases.reap()
    assert jobs.get(job_id).status == "cancelled"


def test_what_is_asked_in_another_process_arrives(jobs, elsewhere, job_id):
    token = begin(jobs, job_id)
    elsewhere.pause(job_id)
    assert jobs.requested(job_id) is None
    jobs.leases.keep({job_id: token})
    assert jobs.requested(job_id) == "pause"


@pytest.mark.parametrize(
    ("end", "error"),
    [("cancel", JobCancelled), ("fail", JobConflict), ("delete", JobNotFound), ("succeed", None)],
)
def test_a_stream_is_told_how_its_job_ended(store, jobs, elsewhere, job_id, end, error):
    token = begin(jobs, job_id)
    if end == "cancel":
        elsewhere.cancelled(job_id, token, "done")
    elif end == "delete":
        job_id = "ftjob-gone"
    else:
        REPORTS[end](elsewhere, job_id, token)
    lost = jobs.leases.keep({job_id: token})
    assert type(lost.get(job_id)) is (error or type(None))
    with store.read() as session:
        assert session.scalars(select(LeaseRow.token)).all() == ([token] if end == "delete" else [])


def test_a_job_whose_device_stays_away_is_given_up_where_the_operator_says_so(store, job_id, clock):
    jobs = Jobs(store, give_up_days=2)
    held = jobs.create("alice", jobs.get(job_id).spec).id
    for one in (job_id, held):
        begin(jobs, one)
    jobs.pause(held)
    clock.now += 1.9 * 86_400
    jobs.leases.reap()
    assert {jobs.get(one).status for one in (job_id, held)} == {"paused"}
    clock.now += 0.2 * 86_400
    Jobs(store).leases.reap()
    assert jobs.get(job_id).status == "paused", "by default a job waits for ever"
    jobs.leases.reap()
    assert (jobs.get(job_id).status, jobs.get(held).status) == ("failed", "paused")
    assert jobs.get(job_id).reason == "its device has been away for more than 2 days"
