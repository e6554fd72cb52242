"""Sessions of a job: one device holds it at a time, and only a device that fits."""

import pytest

from privtune.cloud.compute.artifacts import Artifacts
from privtune.cloud.compute.desk import Desk
from privtune.cloud.settings import Settings
from privtune.shared.codec import encode, probe
from privtune.shared.errors import JobConflict, SessionSuperseded, VersionMismatch
from privtune.shared.job_spec import JobSpec
from privtune.shared.wire import codec_number
from privtune.split.v1 import split_pb2 as pb


@pytest.fixture
def desk(host, jobs, tmp_path):
    return Desk(host, jobs, Artifacts(tmp_path), Settings(data_folder=tmp_path))


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
        "total_steps": 4,
    }
    return pb.OpenRequest(**fields | changes)


def test_a_newer_session_fences_off_the_older_one(desk, host, jobs, job):
    old, new = desk.open("alice", request(host, job)), desk.open("alice", request(host, job))
    jobs.start(job.id)
    with pytest.raises(SessionSuperseded):
        desk.current(job.id, old.epoch)
    assert desk.current(job.id, new.epoch) is new
    desk.stream_ended(old, "the old stream ends late")
    assert jobs.get(job.id).status == "running"
    desk.stream_ended(new, "gone")
    assert jobs.get(job.id).status == "paused"


def test_a_job_that_was_not_opened_has_no_session(desk, job):
    with pytest.raises(JobConflict, match="open it again"):
        desk.current(job.id, 1)


@pytest.mark.parametrize(
    "change", [{"spec_fingerprint": "other"}, {"hidden_size": 8}, {"model_fingerprint": "other"}, {"codec_probe": b""}]
)
def test_a_device_that_differs_is_refused(desk, host, job, change):
    with pytest.raises(VersionMismatch):
        desk.open("alice", request(host, job, **change))
