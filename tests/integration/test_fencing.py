"""Who may take a job over, and what becomes of the session that held it."""

import time

import pytest

from privtune.cloud.db.database import sqlite_url
from privtune.cloud.db.store import Store
from privtune.cloud.jobs.service import Jobs
from privtune.device.home.job_folder import JobFolder
from privtune.device.inference.predict import predict
from privtune.device.link.rpc import Link
from privtune.shared.errors import InvalidInput, JobConflict, JobNotFound, SessionSuperseded, VersionMismatch
from tests.support.running import run, wait_for
from tests.support.sessions import request_for, streaming
from tests.support.world import Watcher


@pytest.mark.parametrize("infer", [False, True])
@pytest.mark.parametrize("who", ["stranger", "other device"])
def test_an_open_that_is_refused_does_not_touch_the_running_stream(local_world, who, infer):
    world, spec = local_world, local_world.spec(train={"max_steps": 8, "checkpoint_every": 2})
    job_id = world.cloud.create_job(spec)
    request = request_for(world, job_id, spec, infer=infer)
    key, refusal = world.settings.api_key, VersionMismatch
    if who == "stranger":
        key, refusal = world.cloud.keys.create("mallory").secret, JobNotFound
    else:
        request.bottom_sha256 = "0" * 64

    def intrude(info):
        if info.step in (3, 5):
            with Link(world.device(api_key=key).endpoint) as link, pytest.raises(refusal):
                link.open(request)

    watcher = Watcher(at_step=intrude)
    run(world, spec, watcher=watcher, job_id=job_id)
    assert len(watcher.starts) == 1, "the stream was never interrupted"


def test_the_owners_predictions_do_not_stop_the_training(local_world):
    world, spec = local_world, local_world.spec(train={"max_steps": 8, "checkpoint_every": 2})
    job_id, answers = world.cloud.create_job(spec), []

    def use(info):
        if info.step == 5:
            answers.extend(predict(job_id, ["w1 w2"], world.settings))

    watcher = Watcher(at_step=use)
    run(world, spec, watcher=watcher, job_id=job_id)
    assert (len(watcher.starts), len(answers)) == (1, 1)


def test_a_job_that_is_deleted_through_another_process_ends_its_streams_here(local_world):
    world, spec = local_world, local_world.spec(train={"max_steps": 1, "checkpoint_every": 1})
    job_id, _ = run(world, spec)
    elsewhere = Jobs(Store(sqlite_url(world.folder / "cloud" / "cloud.sqlite")))
    request = request_for(world, job_id, spec, infer=True, checkpoint_steps=[1])
    with Link(world.settings.endpoint) as link, streaming(link, request) as stream:
        elsewhere.deletions.delete(job_id, "alice")
        with pytest.raises(JobNotFound, match="deleted by its owner"):
            stream.receive()


def test_two_inference_sessions_of_a_job_live_side_by_side(local_world):
    world, spec = local_world, local_world.spec(train={"max_steps": 2, "checkpoint_every": 1})
    job_id, _ = run(world, spec)
    request = request_for(world, job_id, spec, infer=True, checkpoint_steps=[2])
    with Link(world.settings.endpoint) as link:
        first = link.open(request)
        link.open(request)
        stream = link.stream(first, job_id, infer=True, patience=1)
        assert predict(job_id, ["w1 w2"], world.settings)
        with pytest.raises(Exception, match="sent nothing"):
            stream.receive()
        stream.abort()


def test_a_fenced_stream_is_told_at_once_and_its_job_waits_for_the_newer_device(local_world):
    world, spec = local_world, local_world.spec()
    job_id = world.cloud.create_job(spec)
    request = request_for(world, job_id, spec)
    with Link(world.settings.endpoint) as link, streaming(link, request) as old:
        wait_for(world, job_id, "running")
        link.open(request)  # a device that dies before it streams
        began = time.monotonic()
        with pytest.raises(SessionSuperseded):
            old.receive()
        assert time.monotonic() - began < 5
        wait_for(world, job_id, "paused")
        with streaming(link, request):
            wait_for(world, job_id, "running")
    wait_for(world, job_id, "paused")


def test_a_session_has_one_stream(local_world):
    world, spec = local_world, local_world.spec()
    job_id = world.cloud.create_job(spec)
    with Link(world.settings.endpoint) as link:
        opened = link.open(request_for(world, job_id, spec))
        first = link.stream(opened, job_id, infer=False, patience=2)
        wait_for(world, job_id, "running")
        second = link.stream(opened, job_id, infer=False, patience=10)
        with pytest.raises(JobConflict, match="open the job again"):
            second.receive()
        with pytest.raises(Exception, match="sent nothing"):
            first.receive()
        assert world.cloud.status(job_id)[0] == "running"
        first.abort()
        second.abort()


def test_a_stream_of_a_job_that_was_refused_meanwhile_ends_with_its_state(local_world):
    world, spec = local_world, local_world.spec()
    job_id = world.cloud.create_job(spec)

    def refuse(info):
        if info.step == 2:
            with Link(world.settings.endpoint) as link:
                link.refuse(job_id, InvalidInput("no"), JobFolder(world.settings.home, job_id).holder())

    with pytest.raises(JobConflict, match="is failed"):
        run(world, spec, watcher=Watcher(at_step=refuse), job_id=job_id)
