"""Deleting a job: all of it, once, completed after a crash, for its owner only, and by age."""

import pytest
from sqlalchemy import func, select

from privtune.cloud.db.tables import CheckpointRow, DeletionRow, EventRow, IdempotencyRow, JobRow
from privtune.cloud.jobs import deletions, job_rows
from privtune.cloud.jobs.deletions import Deletions
from privtune.cloud.jobs.job_files import JobFiles
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.storage import ArtifactStore
from privtune.shared.errors import JobConflict, JobNotFound, StorageFull
from tests.support.leases import HOLDER, begin


@pytest.fixture
def files(tmp_path):
    return JobFiles(ArtifactStore(tmp_path))


@pytest.fixture
def jobs(store, files):
    return Jobs(store, files=files)


def trained(jobs, files, spec, *, end=True, **options):
    """A job with rows in every table and files of every kind."""
    job_id = jobs.create("alice", spec, **options).id
    token = begin(jobs, job_id)
    jobs.record_checkpoint(job_id, token, 1)
    for name in ("checkpoints/step-1/weights", "adapter/adapter_model.safetensors", "base.sha256"):
        path = files.path(job_id) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    if end:
        jobs.succeed(job_id, token, adapter_sha256="00", tokens=1, steps=1)
    return job_id


def rows_of(store, job_id):
    with store.read() as session:
        tables = (EventRow, CheckpointRow, IdempotencyRow)
        found = [session.scalar(select(func.count()).where(table.job_id == job_id)) for table in tables]
        return sum(found) + session.scalar(select(func.count()).where(JobRow.id == job_id))


def test_everything_goes_and_the_receipt_says_what(store, jobs, files, spec):
    job_id = trained(jobs, files, spec, idempotency_key="k")
    other = trained(jobs, files, spec)
    receipt = jobs.deletions.delete(job_id, "alice")
    assert not files.path(job_id).exists()
    assert rows_of(store, job_id) == 0
    with pytest.raises(JobNotFound):
        jobs.get(job_id, "alice")
    assert [job.id for job in jobs.list("alice").items] == [other]
    assert files.path(other).exists()
    went = {kind: (kept.count, kept.bytes) for kind, kept in receipt.went.items()}
    assert went == {
        "job": (1, 0),
        "events": (4, 0),
        "checkpoint rows": (1, 0),
        "idempotency keys": (1, 0),
        "checkpoints": (1, 5),
        "adapter": (1, 5),
        "hash of the base": (1, 5),
    }
    assert receipt.stays
    assert receipt.model == f"ft:tiny:alice::{job_id.removeprefix('ftjob-')}"


def test_a_repeated_request_gets_the_same_receipt(jobs, files, spec):
    job_id = trained(jobs, files, spec)
    first = jobs.deletions.delete(job_id, "alice")
    assert jobs.deletions.delete(job_id, "alice") == first


def test_another_owner_finds_nothing_before_and_after(jobs, files, spec):
    job_id = trained(jobs, files, spec)
    for _ in range(2):
        with pytest.raises(JobNotFound):
            jobs.deletions.delete(job_id, "mallory")
        with pytest.raises(JobNotFound):
            jobs.deletions.receipt(job_id, "mallory")
        assert jobs.deletions.delete(job_id, "alice")
    with pytest.raises(JobNotFound):
        jobs.deletions.delete("ftjob-unknown", "alice")


@pytest.mark.parametrize("state", ["queued", "running", "paused"])
def test_a_job_that_has_not_ended_is_refused(jobs, files, spec, state):
    job_id = jobs.create("alice", spec).id if state == "queued" else trained(jobs, files, spec, end=False)
    if state == "paused":
        jobs.leases.claim(job_id, HOLDER)
    with pytest.raises(JobConflict, match="Cancel it first"):
        jobs.deletions.delete(job_id, "alice")
    assert jobs.get(job_id, "alice").status == state
    assert files.path(job_id).exists() == (state != "queued")


def test_a_crash_before_the_files_are_gone_is_completed_at_the_next_start(store, jobs, files, spec):
    job_id = trained(jobs, files, spec)

    class Killed(BaseException):
        pass

    def kill(job_id):
        raise Killed

    jobs.deletions.when_deleted = kill
    with pytest.raises(Killed):
        jobs.deletions.delete(job_id, "alice")
    with pytest.raises(JobNotFound):
        jobs.get(job_id, "alice")
    assert files.path(job_id).exists(), "the crash came before"
    Deletions(store, files).sweep()
    assert not files.path(job_id).exists()
    assert Deletions(store, files).delete(job_id, "alice").went["adapter"].count == 1


def test_a_half_removed_folder_is_completed(jobs, files, spec):
    job_id = trained(jobs, files, spec)
    files.path(job_id).rename(files.path(job_id).with_name(f".{job_id}.removed"))  # as a kill leaves it
    jobs.deletions.delete(job_id, "alice")
    assert list(files.path(job_id).parent.iterdir()) == []


def test_files_that_cant_be_removed_now_go_with_a_later_sweep(jobs, files, spec, monkeypatch):
    job_id, other = trained(jobs, files, spec), trained(jobs, files, spec)
    remove = files.remove

    def refuse(job_id):
        raise StorageFull("read-only")

    monkeypatch.setattr(files, "remove", refuse)
    for one in (job_id, other):
        with pytest.raises(StorageFull):
            jobs.deletions.delete(one, "alice")
    monkeypatch.setattr(files, "remove", lambda one: refuse(one) if one == job_id else remove(one))
    jobs.deletions.sweep()
    assert (files.path(job_id).exists(), files.path(other).exists()) == (True, False), "one folder must not hold others"


def test_memory_is_freed_before_files_go(jobs, files, spec):
    job_id = trained(jobs, files, spec)
    seen = []
    jobs.deletions.when_deleted = lambda one: seen.append((one, files.path(one).exists()))
    jobs.deletions.delete(job_id, "alice")
    assert seen == [(job_id, True)]


def test_jobs_go_by_age_and_only_those_that_ended(jobs, files, spec, monkeypatch):
    old, unfinished = trained(jobs, files, spec), trained(jobs, files, spec, end=False)
    ended = jobs.get(old).finished_at
    monkeypatch.setattr(job_rows, "now", lambda: ended + 100)
    monkeypatch.setattr("privtune.cloud.jobs.changes.now", lambda: ended + 100)
    new = trained(jobs, files, spec)
    assert jobs.deletions.sweep(ended + 50) == 1
    assert {job.id for job in jobs.list("alice").items} == {unfinished, new}
    assert not files.path(old).exists()
    assert jobs.deletions.receipt(old, "alice").why == "age"


def test_events_go_by_age_and_the_job_and_its_model_stay(jobs, files, spec):
    old, unfinished = trained(jobs, files, spec), trained(jobs, files, spec, end=False)
    ended = jobs.get(old).finished_at
    jobs.deletions.drop_events(ended)
    assert jobs.events(old).items
    jobs.deletions.drop_events(ended + 1)
    assert not jobs.events(old).items
    assert jobs.events(unfinished).items
    assert jobs.get(old).status == "succeeded"
    assert files.path(old).exists()


def test_files_of_discarded_jobs_go_too(store, jobs, files, spec, monkeypatch):
    monkeypatch.setattr(job_rows, "MAX_DISCARDED", 1)
    ids = [jobs.create("alice", spec).id for _ in range(2)]
    for job_id in ids:
        files.path(job_id).mkdir(parents=True)
        jobs.cancel(job_id)
    jobs.create("alice", spec)
    jobs.deletions.sweep()
    assert [files.path(job_id).exists() for job_id in ids] == [False, True]
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(DeletionRow)) == 0, "nobody asked for a receipt"


def test_an_owners_receipts_are_bounded(jobs, files, spec, monkeypatch):
    monkeypatch.setattr(deletions, "MAX_RECEIPTS", 2)
    ids = [trained(jobs, files, spec) for _ in range(5)]
    for job_id in ids:
        jobs.deletions.delete(job_id, "alice")
    with pytest.raises(JobNotFound):
        jobs.deletions.receipt(ids[0], "alice")
    assert jobs.deletions.receipt(ids[-1], "alice")
