"""Checkpoints survive what a crash, a strange device or an operator does to a job."""

import asyncio
import threading

import pytest

from privtune.cloud.compute.artifacts import Artifacts
from privtune.cloud.gateway.split_service import Gateway
from privtune.cloud.storage import ArtifactStore
from privtune.device.home.job_folder import JobFolder
from privtune.device.inference.predict import predict
from privtune.device.link.rpc import Link
from privtune.shared.errors import JobConflict, JobPaused
from privtune.shared.modeling.checkpoint import checkpoint_steps
from tests.support.running import adapter_hash, run, same_order, stop_at
from tests.support.sessions import request_for
from tests.support.world import InProcessCloud, Watcher


def of_cloud(world, job_id):
    artifacts = Artifacts(ArtifactStore(world.folder / "cloud"))
    return artifacts.checkpoints(job_id, JobFolder(world.settings.home, job_id).holder())


def of_device(world, job_id):
    return world.settings.home / "jobs" / job_id / "checkpoints"


def pause_at(world, spec, job_id, step):
    watcher, stop = stop_at(step)
    with pytest.raises(JobPaused):
        run(world, spec, watcher=watcher, stop=stop, job_id=job_id)


@pytest.fixture
def paused(local_world):
    """A job paused with checkpoints of steps 4 and 8, and an undisturbed twin of it."""
    spec = local_world.spec(tuning={"dropout": 0.1}, train={"checkpoint_every": 4})
    calm_id, _ = run(local_world, spec)
    job_id = local_world.cloud.create_job(spec)
    same_order(local_world, calm_id, job_id)
    pause_at(local_world, spec, job_id, 7)
    assert checkpoint_steps(of_cloud(local_world, job_id)) == checkpoint_steps(of_device(local_world, job_id)) == [4, 8]
    return local_world, spec, job_id, adapter_hash(local_world, calm_id)


@pytest.mark.parametrize("held", [[], [3]])
def test_a_device_without_a_common_checkpoint_does_not_delete_those_of_the_cloud(paused, held):
    world, spec, job_id, calm = paused
    with Link(world.settings.endpoint) as link:
        opened = link.open(request_for(world, job_id, spec, checkpoint_steps=held))
    assert opened.resume_step == 0
    watcher = Watcher()
    run(world, spec, watcher=watcher, job_id=job_id)
    assert watcher.starts[0].start_step == 8
    assert adapter_hash(world, job_id) == calm


@pytest.mark.parametrize("side", [of_cloud, of_device])
@pytest.mark.parametrize("tear", ["short", "garbled", "gone", "manifest"])
def test_a_torn_newest_checkpoint_is_passed_over(paused, side, tear):
    world, spec, job_id, calm = paused
    folder = side(world, job_id) / "step-00000008"
    path = folder / ("manifest.json" if tear == "manifest" else "state.safetensors")
    whole = path.read_bytes()
    path.write_bytes({"short": whole[: len(whole) // 2], "garbled": whole[:-1] + b"\xff"}.get(tear, b""))
    if tear == "gone":
        path.unlink()
    if side is of_cloud:
        with pytest.raises(JobConflict, match="train the job further"):
            predict(job_id, ["w1 w2"], world.settings)  # never with a head of another step
    else:
        assert predict(job_id, ["w1 w2"], world.settings)
    watcher = Watcher()
    run(world, spec, watcher=watcher, job_id=job_id)
    assert watcher.starts[0].start_step == 4
    assert adapter_hash(world, job_id) == calm


def test_a_cloud_that_is_ending_sends_devices_away_until_it_is_back(local_world, monkeypatch):
    """A device that comes back before the process is gone tries again later."""
    shutdown = Gateway.shutdown

    async def slow(self):
        await shutdown(self)
        await asyncio.sleep(3)

    monkeypatch.setattr(Gateway, "shutdown", slow)
    world, spec = local_world, local_world.spec(train={"max_steps": 8, "checkpoint_every": 1000})
    port = int(world.cloud.grpc_address.rpartition(":")[2])

    def restart():
        world.cloud.stop()
        world.cloud = InProcessCloud(world.folder / "cloud", world.models, grpc_port=port)

    restarting = threading.Thread(target=restart)
    watcher = Watcher(at_step=lambda info: restarting.start() if info.step == 3 and not restarting.ident else None)
    job_id, _ = run(world, spec, watcher=watcher)
    restarting.join()
    assert any("shutting down" in message for message in watcher.messages[1:])
    assert world.cloud.status(job_id)[0] == "succeeded"


def test_a_cloud_that_is_told_to_end_checkpoints_the_present_step_first(local_world):
    world, spec = local_world, local_world.spec(tuning={"dropout": 0.1}, train={"checkpoint_every": 1000})
    calm_id, _ = run(world, spec)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    port = int(world.cloud.grpc_address.rpartition(":")[2])

    def restart():
        world.cloud.stop()
        world.cloud = InProcessCloud(world.folder / "cloud", world.models, grpc_port=port)

    restarting = threading.Thread(target=restart)
    watcher = Watcher(at_step=lambda info: restarting.start() if info.step == 6 and not restarting.ident else None)
    run(world, spec, watcher=watcher, job_id=job_id)
    restarting.join()
    assert len(watcher.starts) == 2
    assert watcher.starts[1].start_step >= 6
    assert adapter_hash(world, job_id) == adapter_hash(world, calm_id)
