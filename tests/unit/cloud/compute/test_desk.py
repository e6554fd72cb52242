"""Sessions of a job: one device holds it at a time, and only a device that fits."""

import gc
import weakref
from contextlib import suppress

import numpy as np
import pytest

from privtune.cloud.compute import desk as desk_module
from privtune.cloud.compute.artifacts import Artifacts
from privtune.cloud.compute.desk import MAX_WAITING_SESSIONS, Desk
from privtune.cloud.settings import Settings
from privtune.cloud.storage import ArtifactStore
from privtune.shared.codec import encode, probe
from privtune.shared.errors import CloudUnreachable, InvalidInput, SessionSuperseded, VersionMismatch
from privtune.shared.job_spec import JobSpec
from privtune.shared.public_table import MAX_TABLE_BYTES, PublicTable
from privtune.shared.wire import STEP, Message, codec_number
from privtune.split.v1 import split_pb2 as pb
from tests.support.leases import HOLDER, OTHER


@pytest.fixture
def desk(host, jobs, tmp_path):
    return Desk(host, jobs, Artifacts(ArtifactStore(tmp_path)), Settings(data_folder=tmp_path))


@pytest.fixture
def job(jobs):
    return jobs.create("alice", JobSpec(model="enc", training_file="device://x"))


def request(host, job, **changes):
    partition = host.partition(job.spec.model, job.spec.task)
    fields = {
        "job_id": job.id,
        "spec_fingerprint": job.spec.fingerprint(),
        "hidden_size": partition.hidden_size,
        "model_fingerprint": partition.fingerprint(),
        "codec": codec_number(job.spec.codec),
        "codec_probe": encode(probe(), job.spec.codec),
        "bottom_sha256": host.bottom_sha256(job.spec),
        "total_steps": 4,
        "holder": HOLDER,
    }
    return pb.OpenRequest(**fields | changes)


def test_a_newer_session_fences_off_the_older_one(desk, host, jobs, job):
    old, new = desk.open("alice", request(host, job)), desk.open("alice", request(host, job))
    desk.start(new, "stream")
    with pytest.raises(SessionSuperseded):
        desk.current(job.id, old.epoch)
    assert desk.current(job.id, new.epoch) is new
    desk.stream_ended(old, None, "the old stream ends late")
    assert jobs.get(job.id).status == "running"
    desk.stream_ended(new, "stream", "gone")
    assert jobs.get(job.id).status == "paused"


def test_a_job_that_was_not_opened_has_no_session(desk, job):
    with pytest.raises(CloudUnreachable, match="open the job again"):
        desk.current(job.id, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"spec_fingerprint": "other"},
        {"hidden_size": 8},
        {"model_fingerprint": "other"},
        {"bottom_sha256": ""},
        {"bottom_sha256": "0" * 64},
        {"codec_probe": b""},
    ],
)
def test_a_device_that_differs_is_refused(desk, host, job, change):
    with pytest.raises(VersionMismatch):
        desk.open("alice", request(host, job, **change))


@pytest.mark.parametrize("infer", [False, True])
def test_a_job_that_began_on_other_weights_is_refused(desk, host, job, tmp_path, infer):
    Artifacts(ArtifactStore(tmp_path)).pin_base(job.id, "0" * 64)
    with pytest.raises(VersionMismatch, match="restore the old ones"):
        desk.open("alice", request(host, job, infer=infer))


def test_a_superseded_session_can_not_apply_a_step(desk, host, job):
    """Its stream passed the check once; every message is checked again where the model is touched."""
    old = desk.open("alice", request(host, job))
    desk.start(old, "stream")
    desk.advance(old, old.machine.handle(Message(kind=STEP, step=0)))
    answers = old.machine.handle(Message(kind=STEP, step=1))
    new = desk.open("alice", request(host, job))
    before = new.top.step
    with pytest.raises(SessionSuperseded):
        desk.advance(old, answers)
    with pytest.raises(SessionSuperseded):
        desk.start(old, "stream")
    assert new.top.step == before


def test_a_running_job_waits_from_the_moment_that_a_newer_session_opens(desk, host, jobs, job):
    old = desk.open("alice", request(host, job))
    desk.start(old, "stream")
    desk.open("alice", request(host, job))
    assert jobs.get(job.id).status == "paused"


@pytest.mark.parametrize("end", ["cancel", "refuse", "stream"])
def test_sessions_of_jobs_that_wait_or_have_ended_are_freed(desk, host, jobs, job, end):
    jobs.when_ended(desk.drop)
    session = weakref.ref(opened := desk.open("alice", request(host, job)))
    if end == "cancel":
        jobs.cancel(job.id, "alice")
    elif end == "refuse":
        jobs.refuse(job.id, "INVALID_INPUT", "no", holder=HOLDER)
    else:
        desk.start(opened, "stream")
        desk.stream_ended(opened, "stream", "the lid was closed")
    del opened
    gc.collect()
    assert session() is None


def test_word_of_a_release_that_comes_late_leaves_the_next_device_its_session(desk, host, jobs, job):
    said = []
    jobs.when_ended(lambda *what: said.append(what))
    desk.open("alice", request(host, job))
    jobs.leases.release(job.id, "alice")
    new = desk.open("alice", request(host, job, holder=OTHER))
    desk.drop(*said[0])
    assert desk.current(job.id, new.epoch) is new


def test_an_owners_sessions_that_wait_for_their_stream_are_bounded(desk, host, jobs):
    spec = JobSpec(model="enc", training_file="device://x")
    mine = [desk.open("alice", request(host, jobs.create("alice", spec))) for _ in range(3)]
    desk.start(mine[0], object())
    theirs = desk.open("bob", request(host, jobs.create("bob", spec)))
    for _ in range(MAX_WAITING_SESSIONS - 1):
        newest = desk.open("alice", request(host, jobs.create("alice", spec)))
    for kept in (mine[0], theirs, mine[2], newest):
        assert desk.current(kept.job_id, kept.epoch) is kept
    with pytest.raises(CloudUnreachable, match="open the job again"):
        desk.current(mine[1].job_id, mine[1].epoch)


def test_what_a_job_trains_is_entered_in_the_budget(host, jobs, tmp_path):
    settings = Settings(data_folder=tmp_path).model_copy(update={"max_memory_bytes": 3 << 20})
    desk, spec = (
        Desk(host, jobs, Artifacts(ArtifactStore(tmp_path)), settings),
        JobSpec(model="enc", training_file="device://x"),
    )
    for owner in "ab":
        desk.open(owner, request(host, jobs.create(owner, spec)))
    waits = jobs.create("c", spec)
    with pytest.raises(CloudUnreachable, match="memory for jobs"):
        desk.open("c", request(host, waits))


def test_an_owner_who_filled_the_memory_gives_up_its_newest_session_to_another(host, jobs, tmp_path):
    settings = Settings(data_folder=tmp_path).model_copy(update={"max_memory_bytes": 5 << 20})
    desk, ended = Desk(host, jobs, Artifacts(ArtifactStore(tmp_path)), settings), []
    desk.end_stream = lambda stream, error: ended.append((stream, error))
    spec, streams, opened = JobSpec(model="enc", training_file="device://x"), [], []
    with suppress(CloudUnreachable):
        while len(opened) < 9:
            opened.append(desk.open("alice", request(host, jobs.create("alice", spec))))
            streams.append(Stream())
            desk.start(opened[-1], streams[-1])
    assert 2 < len(opened) < 9
    theirs = jobs.create("bob", spec)
    with pytest.raises(CloudUnreachable):
        desk.open("bob", request(host, theirs))
    ((stream, error),) = ended
    assert stream is streams[-1]
    assert "another owner needs" in error.message
    desk.stream_ended(opened.pop(), stream, error.message)
    gc.collect()
    again = jobs.create("alice", spec)
    with pytest.raises(CloudUnreachable):
        desk.open("alice", request(host, again))
    assert desk.open("bob", request(host, theirs)).epoch


class Stream:
    """What a session is answered on."""


def test_a_number_of_tokens_that_no_job_has_is_refused(desk, jobs, job):
    with pytest.raises(InvalidInput, match="tokens"):
        desk.commit(pb.CommitRequest(job_id=job.id, session_epoch=1, final_step=4, tokens=2**64 - 1))


def test_a_table_is_stored_with_its_job(desk, host, job, tmp_path):
    """Later sessions of either kind have it; another table, or a damaged file, has to be sent again."""
    table = PublicTable(rows_KD=np.ones((3, 32), np.float32), offsets_PD=np.zeros((0, 32), np.float32))
    asked = request(host, job, table_sha256=table.sha256)
    first = desk.open("alice", asked)
    assert first.releases.needs_table
    assert first.max_message_bytes == MAX_TABLE_BYTES
    list(first.machine.handle(table.to_message()))
    assert not desk.open("alice", asked).releases.needs_table, "the same session's cache"
    other = Desk(host, desk._jobs, Artifacts(ArtifactStore(tmp_path)), Settings(data_folder=tmp_path))
    again = other.open("alice", asked)
    assert not again.releases.needs_table
    assert again.max_message_bytes < MAX_TABLE_BYTES
    assert other.open("alice", request(host, job, table_sha256="0" * 64)).releases.needs_table
    (tmp_path / "jobs" / job.id / "table.safetensors").write_bytes(b"torn")
    assert (
        Desk(host, desk._jobs, Artifacts(ArtifactStore(tmp_path)), Settings(data_folder=tmp_path))
        .open("alice", asked)
        .releases.needs_table
    )


def test_a_session_whose_stream_never_begins_is_freed(desk, host, job, monkeypatch):
    session = desk.open("alice", request(host, job))
    desk.drop_idle()
    assert desk.current(job.id, session.epoch) is session
    monkeypatch.setattr(desk_module, "WAITING_S", 0.0)
    desk.drop_idle()
    with pytest.raises(CloudUnreachable, match="open the job again"):
        desk.current(job.id, session.epoch)
