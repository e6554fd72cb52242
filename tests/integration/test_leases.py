"""A job belongs to one device at a time, whatever devices, owners and clouds on one database do."""

import sqlite3
import threading
import time
from functools import partial

import pytest

from privtune.cloud.compute.desk import Desk
from privtune.cloud.jobs import service
from privtune.device.link.gateway import GatewayAccess
from privtune.device.link.rpc import Link
from privtune.shared.errors import InvalidInput, JobCancelled, JobConflict, SessionSuperseded
from privtune.shared.wire import STEP, Message
from tests.support.leases import OTHER
from tests.support.proxy import Proxy
from tests.support.running import adapter_hash, once, run, same_order, wait_for, wait_until
from tests.support.sessions import request_for, streaming
from tests.support.world import InProcessCloud, Watcher, build_world

SHORT = {"max_steps": 8, "checkpoint_every": 2}


@pytest.fixture
def second(local_world):
    """Another cloud process on the same database, with a data folder of its own."""
    database = local_world.folder / "cloud" / "cloud.sqlite"
    cloud = InProcessCloud(local_world.folder / "second", local_world.models, database=database)
    yield cloud
    cloud.stop()


def door(cloud):
    return GatewayAccess(address=cloud.grpc_address, api_key=cloud.api_key)


def opens(cloud, request):
    with Link(door(cloud)) as link:
        return link.open(request)


def test_another_device_neither_takes_nor_ends_a_job_that_is_held(local_world, second):
    """At either cloud; the stream that holds it goes on as if nothing had happened."""
    world, spec = local_world, local_world.spec(train=SHORT)
    job_id = world.cloud.create_job(spec)
    stranger = request_for(world, job_id, spec, holder=OTHER)

    def intrude(info):
        for cloud in (world.cloud, second):
            with Link(door(cloud)) as link:
                with pytest.raises(JobConflict, match="Another device holds"):
                    link.open(stranger)
                with pytest.raises(JobConflict, match="Another device holds"):
                    link.refuse(job_id, InvalidInput("not here"), OTHER)

    watcher = Watcher(at_step=once({3}, partial(intrude, None)))
    run(world, spec, watcher=watcher, job_id=job_id)
    assert len(watcher.starts) == 1
    assert world.cloud.status(job_id)[0] == "succeeded"


def test_a_device_that_moves_to_another_cloud_process_fences_its_stream_at_the_first(local_world, second):
    world, spec = local_world, local_world.spec()
    job_id = world.cloud.create_job(spec)
    request = request_for(world, job_id, spec)
    with Link(world.settings.endpoint) as link, streaming(link, request) as old:
        wait_for(world, job_id, "running")
        with Link(door(second)) as other, streaming(other, request):
            with pytest.raises(SessionSuperseded):
                old.receive()
            wait_for(world, job_id, "running")


@pytest.mark.parametrize("at", ["the same cloud", pytest.param("another", marks=pytest.mark.slow)])
def test_a_job_that_its_owner_takes_back_is_trained_by_another_device_alone(local_world, second, at):
    world, spec = local_world, local_world.spec(train=SHORT)
    job_id = world.cloud.create_job(spec)
    cloud = world.cloud if at == "the same cloud" else second
    elsewhere = world.device(home=world.folder / "other-home", grpc_address=cloud.grpc_address)
    later, ended = Watcher(), threading.Event()

    def take():
        cloud.jobs.leases.release(job_id, "alice")
        run(world, spec, settings=elsewhere, watcher=later, job_id=job_id)
        ended.set()

    first = Watcher(at_step=once({3}, take))
    with pytest.raises(SessionSuperseded):
        run(world, spec, watcher=first, job_id=job_id)
    assert ended.is_set()
    assert [info.start_step for info in later.starts] == [0], "it has a run of its own"
    assert len(first.steps) == 3
    assert world.cloud.status(job_id)[0] == "succeeded"


@pytest.mark.slow
def test_a_device_that_gets_its_job_back_resumes_its_own_run(local_world):
    """What another device trained meanwhile is neither mixed in nor in its place."""
    world, spec = local_world, local_world.spec(tuning={"dropout": 0.1}, train=SHORT)
    calm_id, _ = run(world, spec)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id, holder="c" * 32)
    elsewhere = world.device(home=world.folder / "other-home")

    def release_at(step):
        return Watcher(at_step=once({step}, lambda: world.cloud.jobs.leases.release(job_id)))

    for settings, step in ((world.settings, 5), (elsewhere, 7)):
        with pytest.raises(SessionSuperseded):
            run(world, spec, settings=settings, watcher=release_at(step), job_id=job_id)
    watcher = Watcher()
    run(world, spec, watcher=watcher, job_id=job_id)
    assert watcher.starts[0].start_step == 4
    assert adapter_hash(world, job_id) == adapter_hash(world, calm_id)


@pytest.mark.parametrize("busy", ["compute", pytest.param("device", marks=pytest.mark.slow)])
@pytest.mark.parametrize("at", ["another", pytest.param("the same cloud", marks=pytest.mark.slow)])
def test_a_cancel_ends_within_seconds_whatever_device_or_compute_do(local_world, second, monkeypatch, busy, at):
    monkeypatch.setattr(service, "CANCEL_S", 0)
    world, spec, stuck = local_world, local_world.spec(), threading.Event()
    job_id = world.cloud.create_job(spec)
    with Link(world.settings.endpoint) as link, streaming(link, request_for(world, job_id, spec)) as stream:
        wait_for(world, job_id, "running")
        if busy == "compute":
            monkeypatch.setattr(Desk, "advance", lambda *_: not stuck.wait(20) or None)
            stream.send(Message(kind=STEP, step=0))
        began = time.monotonic()
        (world.cloud if at == "the same cloud" else second).jobs.cancel(job_id, "alice")
        wait_for(world, job_id, "cancelled")
        if busy == "device":
            with pytest.raises(JobCancelled):
                stream.receive()
        assert time.monotonic() - began < 5
        stuck.set()


@pytest.mark.slow
def test_a_half_open_connection_frees_its_job_and_the_device_resumes(tmp_path):
    """The device's network is gone without a word; its job waits, says so, and continues bit by bit."""
    world = build_world(tmp_path, partial(InProcessCloud, lease_s=2))
    spec = world.spec(tuning={"dropout": 0.1}, train=SHORT)
    calm_id, _ = run(world, spec)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    with Proxy(world.settings.grpc_address, record=False) as proxy:

        def silence():
            proxy.silent.set()
            wait_for(world, job_id, "paused")
            proxy.silent.clear()
            proxy.cut()

        watcher = Watcher(at_step=once({5}, silence))
        run(world, spec, settings=world.device(grpc_address=proxy.address), watcher=watcher, job_id=job_id)
    assert [info.start_step for info in watcher.starts] == [0, 4]
    assert adapter_hash(world, job_id) == adapter_hash(world, calm_id)
    world.cloud.stop()


@pytest.mark.slow
def test_a_lease_is_renewed_while_its_stream_lives(tmp_path):
    world = build_world(tmp_path, partial(InProcessCloud, lease_s=2))
    spec = world.spec()
    job_id = world.cloud.create_job(spec)
    with Link(world.settings.endpoint) as link, streaming(link, request_for(world, job_id, spec)):
        wait_for(world, job_id, "running")
        first = lease_end(world, job_id)
        wait_until(lambda: lease_end(world, job_id) > first + 1)
        assert world.cloud.status(job_id)[0] == "running"
    wait_for(world, job_id, "paused")
    wait_until(lambda: lease_end(world, job_id) < time.time())
    assert opens(world.cloud, request_for(world, job_id, spec, holder=OTHER)).resume_step == 0
    world.cloud.stop()


def lease_end(world, job_id):
    with sqlite3.connect(world.folder / "cloud" / "cloud.sqlite") as database:
        return database.execute("SELECT until FROM leases WHERE job_id = ?", (job_id,)).fetchone()[0]


def test_what_a_killed_cloud_left_running_waits_for_its_device(tmp_path):
    world = build_world(tmp_path, partial(InProcessCloud, lease_s=1))
    spec = world.spec()
    job_id = world.cloud.create_job(spec)
    world.cloud.jobs.start(job_id, world.cloud.jobs.leases.claim(job_id, OTHER))  # by a process that is no more
    wait_for(world, job_id, "paused")
    assert world.cloud.jobs.get(job_id).phase == "waiting_for_device"
    world.cloud.stop()


def test_a_device_without_a_proper_name_opens_nothing(local_world):
    world, spec = local_world, local_world.spec()
    request = request_for(world, world.cloud.create_job(spec), spec)
    for name in ("", "A" * 32, "a" * 31, "../" + "a" * 29):
        request.holder = name
        with pytest.raises(InvalidInput, match="32 hex digits"):
            opens(world.cloud, request)
