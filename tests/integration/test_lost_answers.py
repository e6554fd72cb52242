"""Every call is repeatable: its answer may be lost, or come after the deadline, and both sides still agree."""

import time

import pytest

from privtune.cloud.compute.desk import Desk
from privtune.cloud.compute.host import Host
from privtune.cloud.jobs.service import Jobs
from privtune.device.inference.predict import predict
from privtune.device.link import rpc
from privtune.device.link.rpc import Link
from privtune.shared.errors import CloudUnreachable, InvalidInput, JobConflict, SessionSuperseded
from privtune.split.v1 import split_pb2 as pb
from tests.support.lossy import lossy_links
from tests.support.proxy import Proxy
from tests.support.running import adapter_hash, once, run, same_order, wait_for
from tests.support.world import Watcher


def short(world, **changes):
    return world.spec(**changes, train={"max_steps": 4, "checkpoint_every": 2})


def agrees(world, job_id, result):
    """The cloud says done, the device does too, and both name the same adapter."""
    assert world.cloud.status(job_id)[0] == "succeeded"
    assert result.adapter_sha256 == adapter_hash(world, job_id)
    assert predict(job_id, ["w1 w2"], world.settings)


@pytest.mark.parametrize("name", ["Open", "Fetch", "Commit"])
def test_a_lost_answer_is_asked_for_again(local_world, monkeypatch, name):
    lossy = lossy_links(monkeypatch, name)
    job_id, result = run(local_world, short(local_world))
    agrees(local_world, job_id, result)
    assert lossy.calls[name] >= 2


@pytest.mark.parametrize("lost", [2, 3])
@pytest.mark.parametrize("tail", [0, 1])
def test_a_commit_whose_answers_are_all_lost_is_settled_by_the_next_session(local_world, monkeypatch, lost, tail):
    lossy = lossy_links(monkeypatch, "Commit", times=lost)
    watcher = Watcher()
    job_id, result = run(local_world, short(local_world, tail=tail), watcher=watcher)
    assert [info.start_step for info in watcher.starts] == [0, 4]
    assert len(watcher.steps) == 4
    assert lossy.calls["Commit"] == lost + 1
    assert local_world.cloud.status(job_id)[0] == "succeeded"
    assert result.adapter_sha256
    assert result.metrics


def test_a_device_that_dies_before_the_answer_finishes_the_job_later(local_world, monkeypatch):
    world, spec = local_world, short(local_world)
    job_id = world.cloud.create_job(spec)
    with monkeypatch.context() as patch:
        lossy_links(patch, "Commit", times=9)
        with pytest.raises(CloudUnreachable):
            run(world, spec, settings=world.device(no_progress_timeout=0.1), job_id=job_id)
    assert world.cloud.status(job_id)[0] == "succeeded"
    _, result = run(world, spec, job_id=job_id)
    agrees(world, job_id, result)


@pytest.mark.parametrize(
    ("name", "holder", "method", "number"),
    [
        pytest.param("Open", Desk, "open", 1, marks=pytest.mark.slow),
        pytest.param("Fetch", Host, "bottom_package", 1, marks=pytest.mark.slow),
        ("Commit", Desk, "commit", 1),
        pytest.param("Refuse", Jobs, "fail", 1, marks=pytest.mark.slow),
        ("Train", Desk, "advance", 15),  # in the second step
        pytest.param("Infer", Desk, "advance", 1, marks=pytest.mark.slow),
    ],
)
def test_an_answer_after_the_deadline_is_asked_for_again(local_world, monkeypatch, name, holder, method, number):
    """The compute thread was busy: the call is carried out, and nobody waits for it any more."""
    world, spec, calls = local_world, short(local_world), []
    first, _ = run(world, spec, validation=False)  # everything is loaded
    before, done = predict(first, ["w1 w2"], world.settings), getattr(holder, method)
    impatient = world.device(no_progress_timeout=3.0)

    def late(*arguments):
        calls.append(name)
        if len(calls) == number:
            time.sleep(4)
        return done(*arguments)

    monkeypatch.setattr(holder, method, late)
    for deadline in ("OPEN_TIMEOUT_S", "CALL_TIMEOUT_S"):
        monkeypatch.setattr(rpc, deadline, 3.0)
    job_id = world.cloud.create_job(spec)
    if name == "Refuse":
        with Link(world.settings.endpoint) as link:
            link.refuse(job_id, InvalidInput("not this one"))
        assert world.cloud.status(job_id) == ("failed", "not this one")
        return
    if name == "Infer":
        with pytest.raises(CloudUnreachable, match="sent nothing"):
            predict(first, ["w1 w2"], impatient)
        assert predict(first, ["w1 w2"], impatient) == before
        return
    watcher = Watcher()
    _, result = run(world, spec, settings=impatient, watcher=watcher, job_id=job_id)
    assert len(calls) > number
    assert len(watcher.starts) == (2 if name == "Train" else 1)
    agrees(world, job_id, result)


def test_a_lost_refusal_is_repeated_and_another_one_is_a_conflict(local_world, monkeypatch):
    world = local_world
    job_id = world.cloud.create_job(short(world))
    lossy = lossy_links(monkeypatch, "Refuse")
    with Link(world.settings.endpoint) as link:
        link.refuse(job_id, InvalidInput("not this one"))
        link.refuse(job_id, InvalidInput("not this one"))
        with pytest.raises(JobConflict):
            link.refuse(job_id, InvalidInput("for another reason"))
    assert lossy.calls["Refuse"] == 4
    assert world.cloud.status(job_id) == ("failed", "not this one")


def test_a_commit_answers_its_own_session_and_newer_ones_only(local_world):
    world, spec = local_world, short(local_world)
    job_id, result = run(world, spec)
    with Link(world.settings.endpoint) as link:
        again = pb.CommitRequest(job_id=job_id, session_epoch=7, final_step=4)
        assert {link.commit(again).adapter_sha256 for _ in range(2)} == {result.adapter_sha256}
        with pytest.raises(SessionSuperseded):
            link.commit(pb.CommitRequest(job_id=job_id, session_epoch=0, final_step=4))
        with pytest.raises(JobConflict, match="4 steps, not 3"):
            link.commit(pb.CommitRequest(job_id=job_id, session_epoch=7, final_step=3))


def test_a_connection_that_breaks_around_the_end_leaves_no_conflict(local_world):
    """Cut after each of the last steps, through the proxy: whatever was under way is done once."""
    world, spec = local_world, short(local_world)
    calm_id, _ = run(world, spec)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    with Proxy(world.settings.grpc_address, record=False) as proxy:
        watcher = Watcher(at_step=once({3, 4}, proxy.cut))
        _, result = run(world, spec, settings=world.device(grpc_address=proxy.address), watcher=watcher, job_id=job_id)
    agrees(world, job_id, result)
    assert adapter_hash(world, job_id) == adapter_hash(world, calm_id)


def test_a_session_that_ends_before_its_commit_arrives_is_opened_again(local_world):
    """The cloud notices the cut before the device commits: nothing is wrong with the job, and it ends by itself."""
    world, spec = local_world, short(local_world)
    job_id = world.cloud.create_job(spec)
    with Proxy(world.settings.grpc_address, record=False) as proxy:

        def cut() -> None:
            proxy.cut()
            wait_for(world, job_id, "paused")

        watcher = Watcher(at_step=once({4}, cut))
        settings = world.device(grpc_address=proxy.address)
        _, result = run(world, spec, validation=False, settings=settings, watcher=watcher, job_id=job_id)
    agrees(world, job_id, result)
    assert [info.start_step for info in watcher.starts] == [0, 4]
