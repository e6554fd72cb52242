"""The state machine, row by row, and what must hold when many act at once."""

import threading

import pytest
from sqlalchemy import event

from privtune.cloud.jobs import job_rows
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.states import FINAL, STATUSES, JobProgress
from privtune.cloud.limits import OwnerLimits
from privtune.cloud.settings import Limits
from privtune.shared.errors import InvalidInput, JobConflict, JobNotFound, PermissionDenied, SessionSuperseded
from privtune.shared.job_spec import JobSpec, MechanismSpec
from tests.support.leases import HOLDER

ME = "alice"


def held(jobs, spec, status):
    """A job in the wanted state, and the token of the device that holds it or held it last."""
    job_id = jobs.create(ME, spec).id
    token = jobs.leases.claim(job_id, HOLDER)
    if status in ("running", "paused", "succeeded"):
        jobs.start(job_id, token)
    if status == "paused":
        jobs.disconnected(job_id, token, "the lid was closed")
    elif status == "succeeded":
        jobs.succeed(job_id, token, adapter_sha256="a" * 64, tokens=10, steps=3)
    elif status == "failed":
        jobs.fail(job_id, token, "NON_FINITE", "the loss is not a number")
    elif status == "cancelled":
        jobs.cancel(job_id)
    assert jobs.get(job_id).status == status
    return job_id, token


ACTIONS = {
    "claim": lambda jobs, job_id, token: jobs.leases.claim(job_id, HOLDER),
    "release": lambda jobs, job_id, token: jobs.leases.release(job_id),
    "start": lambda jobs, job_id, token: jobs.start(job_id, token),
    "paused": lambda jobs, job_id, token: jobs.paused(job_id, token, "stopped"),
    "succeed": lambda jobs, job_id, token: jobs.succeed(job_id, token, adapter_sha256="a" * 64, tokens=1, steps=1),
    "fail": lambda jobs, job_id, token: jobs.fail(job_id, token, "INTERNAL", "broken"),
    "refuse": lambda jobs, job_id, token: jobs.refuse(job_id, "INTERNAL", "broken", holder=HOLDER),
    "cancelled": lambda jobs, job_id, token: jobs.cancelled(job_id, token, "ended"),
    "pause": lambda jobs, job_id, token: jobs.pause(job_id),
    "resume": lambda jobs, job_id, token: jobs.resume(job_id),
    "cancel": lambda jobs, job_id, token: jobs.cancel(job_id),
    "disconnected": lambda jobs, job_id, token: jobs.disconnected(job_id, token, "gone"),
}
# Where each action leads from each state; None: refused.
TABLE = {
    "claim": {"queued": "queued", "running": "paused", "paused": "paused"},
    "release": {"queued": "queued", "running": "queued", "paused": "queued"},
    "refuse": {"queued": "failed", "running": "failed", "paused": "failed"},
    "start": {"queued": "running", "running": "running", "paused": "running"},
    "paused": {"queued": "paused", "running": "paused", "paused": "paused"},
    "succeed": {"running": "succeeded"},
    "fail": {"queued": "failed", "running": "failed", "paused": "failed"},
    "cancelled": {"queued": "cancelled", "running": "cancelled", "paused": "cancelled"},
    "pause": {"queued": "paused", "running": "running", "paused": "paused"},
    "resume": {"paused": "queued"},
    "cancel": {"queued": "cancelled", "running": "running", "paused": "cancelled", "cancelled": "cancelled"},
    "disconnected": {"queued": "queued", "running": "paused", "paused": "paused"},
}


@pytest.mark.parametrize("action", TABLE)
@pytest.mark.parametrize("status", STATUSES)
def test_each_action_from_each_state(jobs, spec, action, status):
    job_id, token = held(jobs, spec, status)
    before, told = jobs.get(job_id), len(jobs.events(job_id).items)
    expected = TABLE[action].get(status)
    if expected is None:
        with pytest.raises((JobConflict, SessionSuperseded)):
            ACTIONS[action](jobs, job_id, token)
        assert jobs.get(job_id) == before, "a refused action must change nothing"
        assert len(jobs.events(job_id).items) == told
    else:
        ACTIONS[action](jobs, job_id, token)
        after = jobs.get(job_id)
        assert after.status == expected
        assert after.reason
        assert (after.finished_at is not None) == (expected in FINAL)


def test_a_pause_of_a_running_job_waits_for_the_step_boundary_and_holds_until_resume(jobs, spec):
    job_id, token = held(jobs, spec, "running")
    assert jobs.requested(job_id) is None
    assert jobs.pause(job_id).phase == "pausing"
    assert jobs.requested(job_id) == "pause"
    assert jobs.paused(job_id, token, "paused after step 4").held
    assert jobs.requested(job_id) is None
    with pytest.raises(JobConflict, match="resume"):
        jobs.start(job_id, token)
    assert jobs.resume(job_id).status == "queued"
    assert jobs.start(job_id, token).status == "running"


def test_a_device_that_stops_by_itself_may_come_back_without_resume(jobs, spec):
    job_id, token = held(jobs, spec, "running")
    assert not jobs.paused(job_id, token, "the owner pressed Ctrl-C").held
    assert jobs.start(job_id, token).status == "running"


def test_a_pause_can_be_taken_back_before_it_happens(jobs, spec):
    job_id, _ = held(jobs, spec, "running")
    jobs.pause(job_id)
    assert jobs.resume(job_id).phase == "training"
    assert jobs.requested(job_id) is None


def test_cancel_wins_over_pause_and_survives_a_lost_connection(jobs, spec):
    job_id, token = held(jobs, spec, "running")
    jobs.pause(job_id)
    jobs.cancel(job_id)
    with pytest.raises(JobConflict, match="cancelled"):
        jobs.pause(job_id)
    assert jobs.disconnected(job_id, token, "gone").status == "cancelled"


def test_a_pause_request_survives_a_lost_connection(jobs, spec):
    job_id, token = held(jobs, spec, "running")
    jobs.pause(job_id)
    job = jobs.disconnected(job_id, token, "gone")
    assert (job.status, job.held) == ("paused", True)


def test_epochs_grow(jobs, spec):
    job_id = jobs.create(ME, spec).id
    assert jobs.next_epoch(job_id) < jobs.leases.claim(job_id, HOLDER) < jobs.next_epoch(job_id)


def test_heartbeats_never_touch_the_database(store, jobs, spec):
    job_id, token = held(jobs, spec, "running")
    statements = []
    event.listen(store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for step in range(100):
        jobs.progress(job_id, JobProgress(step=step, total_steps=100, bytes_up=5000, grad_norm=0.5))
        jobs.requested(job_id)
    assert statements == []
    assert jobs.get(job_id).progress.step == 99
    assert Jobs(store).get(job_id).progress.step == 0
    jobs.record_checkpoint(job_id, token, 99)
    assert Jobs(store).get(job_id).progress.step == 99


def test_checkpoints_are_listed_once(jobs, spec):
    job_id, token = held(jobs, spec, "running")
    for step in (10, 20, 20, 30):
        jobs.record_checkpoint(job_id, token, step)
    assert [item.step for item in jobs.checkpoints(job_id).items] == [30, 20, 10]
    page = jobs.checkpoints(job_id, limit=1, after=30)
    assert ([item.step for item in page.items], page.has_more) == ([20], True)


def test_jobs_are_seen_by_their_owner_alone(jobs, spec):
    job_id = jobs.create(ME, spec).id
    for look in (jobs.get, jobs.pause, jobs.resume, jobs.cancel):
        with pytest.raises(JobNotFound):
            look(job_id, "mallory")
    assert jobs.list("mallory").items == []
    with pytest.raises(JobNotFound, match="after"):
        jobs.list("mallory", after=job_id)


def test_listing_pages_through_everything_newest_first(jobs, spec):
    made = [jobs.create(ME, spec).id for _ in range(25)]
    seen, after = [], None
    while True:
        page = jobs.list(ME, after=after, limit=10)
        seen += [job.id for job in page.items]
        if not page.has_more:
            break
        after = seen[-1]
    assert seen == made[::-1]


def test_listing_by_status_and_metadata(jobs, spec):
    first = jobs.create(ME, spec, metadata={"team": "a"}).id
    second = jobs.create(ME, spec, metadata={"team": "b"}).id
    jobs.cancel(second)
    assert [job.id for job in jobs.list(ME, status=["queued"]).items] == [first]
    assert [job.id for job in jobs.list(ME, status=["queued", "cancelled"]).items] == [second, first]
    assert [job.id for job in jobs.list(ME, metadata={"team": "b"}).items] == [second]
    with pytest.raises(InvalidInput, match="status"):
        jobs.list(ME, status=["asleep"])
    for limit in (0, 101, -1):
        with pytest.raises(InvalidInput, match="limit"):
            jobs.list(ME, limit=limit)


def test_events_page_in_both_directions(jobs, spec):
    job_id = jobs.create(ME, spec).id
    for number in range(7):
        jobs.add_event(job_id, "info", f"event {number}")
    up = jobs.events(job_id, after=2, limit=3)
    assert ([item.seq for item in up.items], up.has_more) == ([3, 4, 5], True)
    down = jobs.events(job_id, limit=3, newest_first=True)
    assert ([item.seq for item in down.items], down.has_more) == ([8, 7, 6], True)
    rest = jobs.events(job_id, after=3, newest_first=True)
    assert ([item.seq for item in rest.items], rest.has_more) == ([2, 1], False)


def test_an_idempotency_key_makes_one_job(jobs, spec):
    first = jobs.create(ME, spec, idempotency_key="k")
    assert jobs.create(ME, spec, idempotency_key="k").id == first.id
    assert jobs.create("bob", spec, idempotency_key="k").id != first.id
    with pytest.raises(JobConflict, match="Idempotency-Key"):
        jobs.create(ME, spec.model_copy(update={"cut": 2}), idempotency_key="k")


def test_one_idempotency_key_from_many_threads_makes_one_job(jobs, spec):
    made, barrier = [], threading.Barrier(8)

    def create():
        barrier.wait()
        made.append(jobs.create(ME, spec, idempotency_key="k").id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert len(jobs.list(ME).items) == 1


def test_events_of_many_threads_are_numbered_without_gaps(jobs, spec):
    job_id = jobs.create(ME, spec).id
    threads = [
        threading.Thread(target=lambda: [jobs.add_event(job_id, "info", "x") for _ in range(10)]) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [item.seq for item in jobs.events(job_id, limit=100).items] == list(range(1, 62))


def test_an_owner_has_a_bounded_number_of_unfinished_jobs(store, spec):
    jobs = Jobs(store, limits=OwnerLimits(store, Limits(unfinished_jobs=2)))
    first = jobs.create(ME, spec, idempotency_key="a")
    jobs.create(ME, spec)
    with pytest.raises(PermissionDenied, match="2 unfinished"):
        jobs.create(ME, spec)
    assert jobs.create(ME, spec, idempotency_key="a").id == first.id, "a repeated request is no new job"
    jobs.create("bob", spec)
    jobs.cancel(first.id)
    jobs.create(ME, spec)


def test_numbers_that_json_cannot_carry_are_refused(jobs):
    for value in (float("inf"), float("nan")):
        spec = JobSpec(
            model="tiny", training_file="device://a", mechanism=MechanismSpec(name="dchi", params={"eta": value})
        )
        with pytest.raises(InvalidInput, match="finite"):
            jobs.create(ME, spec)


def test_a_stored_spec_is_the_one_that_was_given(jobs):
    spec = JobSpec(
        model="tiny",
        training_file="device://a",
        mechanism=MechanismSpec(name="dchi", params={"eta": 100, "exact": True, "name": "x", "p": 0.1}),
    )
    assert jobs.get(jobs.create(ME, spec).id).spec.fingerprint() == spec.fingerprint()


def test_jobs_that_ended_without_a_checkpoint_do_not_pile_up(jobs, spec, monkeypatch):
    monkeypatch.setattr(job_rows, "MAX_DISCARDED", 5)
    trained = jobs.create("alice", spec).id
    jobs.record_checkpoint(trained, jobs.leases.claim(trained, HOLDER), 1)
    jobs.cancel(trained)
    other = jobs.create("bob", spec).id
    jobs.cancel(other)
    for number in range(40):
        job_id = jobs.create("alice", spec, idempotency_key=f"key-{number}").id
        jobs.next_epoch(job_id)
        jobs.cancel(job_id)
    held = [job.id for job in jobs.list("alice", limit=100).items]
    assert len(held) <= 7
    assert trained in held
    assert jobs.get(other).id == other
    again = jobs.create("alice", spec, idempotency_key="key-0")
    assert again.status == "queued"


def test_the_events_of_a_job_are_bounded(jobs, spec, monkeypatch):
    monkeypatch.setattr(job_rows, "MAX_EVENTS", 100)
    job_id = jobs.create("alice", spec).id
    for _ in range(200):
        jobs.pause(job_id)
        jobs.resume(job_id)
    kept = [*jobs.events(job_id, limit=100).items, *jobs.events(job_id, after=400, limit=100).items]
    assert 100 <= len(kept) <= 200
    assert kept[-1].seq == 401


def test_the_checkpoints_of_a_job_are_bounded(jobs, spec, monkeypatch):
    monkeypatch.setattr(job_rows, "MAX_CHECKPOINTS", 3)
    job_id, token = held(jobs, spec, "running")
    for step in range(1, 9):
        jobs.record_checkpoint(job_id, token, step)
    assert [one.step for one in jobs.checkpoints(job_id).items] == [8, 7, 6]
