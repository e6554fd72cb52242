"""A cloud short of memory computes in parts; without any it gives the job a reason, and serves the others."""

import threading

import pytest
import torch

from privtune.cloud.compute.host import Host
from privtune.cloud.compute.top_session import TopSession
from privtune.device.inference.predict import predict
from privtune.shared.errors import CloudOutOfMemory
from privtune.shared.modeling.partition import Top
from tests.support.running import adapter_hash, run, same_order, wait_for
from tests.support.world import Watcher


def on_a_cpu():
    torch.empty(1 << 50)


def on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def in_numpy():
    raise MemoryError("Unable to allocate 8.0 TiB for an array")


def limited(monkeypatch, holder, method, exhaust, when):
    """From now on, this method runs out of memory whenever `when` says so of its object."""
    done = getattr(holder, method)

    def tried(self, *arguments, **options):
        if when(self):
            exhaust()
        return done(self, *arguments, **options)

    monkeypatch.setattr(holder, method, tried)


@pytest.mark.parametrize(
    ("method", "exhaust"),
    [
        pytest.param(method, exhaust, marks=[] if each_once else pytest.mark.slow)
        for row, method in enumerate(("forward", "backward", "apply"))
        for column, exhaust in enumerate((on_a_cpu, on_a_gpu, in_numpy))
        for each_once in [row == column]
    ],
)
def test_a_job_that_needs_too_much_waits_with_the_reason_and_others_finish(local_world, monkeypatch, exhaust, method):
    world = local_world
    spec = world.spec(tuning={"dropout": 0.1}, train={"max_steps": 6, "checkpoint_every": 2})
    other_spec = world.spec(train={"max_steps": 10})
    calm_id, _ = run(world, spec)
    greedy, other = world.cloud.create_job(spec), world.cloud.create_job(other_spec)
    same_order(world, calm_id, greedy)
    with monkeypatch.context() as patch:
        limited(patch, TopSession, method, exhaust, lambda top: greedy in top.folder.parts and top.step == 3)
        settings, watcher = world.device(home=world.folder / "other"), Watcher()
        beside = threading.Thread(
            target=lambda: run(world, other_spec, settings=settings, watcher=watcher, job_id=other)
        )
        beside.start()
        with pytest.raises(CloudOutOfMemory, match="the cloud is out of memory: lower --batch-size"):
            run(world, spec, job_id=greedy)
        beside.join(120)
    assert world.cloud.status(other)[0] == "succeeded"
    assert len(watcher.starts) == 1
    wait_for(world, greedy, "paused")
    assert world.cloud.status(greedy)[1].startswith("the cloud is out of memory")
    run(world, spec, job_id=greedy)
    assert adapter_hash(world, greedy) == adapter_hash(world, calm_id)


def test_a_micro_batch_that_needs_too_much_is_computed_in_parts(local_world, monkeypatch):
    world, calm, short = local_world, Watcher(), Watcher()
    spec = world.spec(model="dec", train={"max_steps": 6})  # without dropout
    calm_id, _ = run(world, spec, watcher=calm)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    whole, sizes = Top.forward, []

    def forward(self, h_BTD, *arguments):
        sizes.append(len(h_BTD))
        if len(h_BTD) > 3:
            on_a_cpu()
        return whole(self, h_BTD, *arguments)

    monkeypatch.setattr(Top, "forward", forward)
    run(world, spec, job_id=job_id, watcher=short)
    assert {8, 4, 2} <= set(sizes)
    assert world.cloud.status(job_id)[0] == "succeeded"
    assert len(short.starts) == 1
    assert short.losses == pytest.approx(calm.losses, rel=1e-4)


@pytest.mark.parametrize("method", ["partition", "top", "bottom_package"])
def test_memory_that_ends_before_the_first_step_is_an_event_of_the_job(local_world, monkeypatch, method):
    world, spec = local_world, local_world.spec(train={"max_steps": 2})
    job_id = world.cloud.create_job(spec)
    with monkeypatch.context() as patch:
        limited(patch, Host, method, on_a_cpu, lambda host: True)
        with pytest.raises(CloudOutOfMemory):
            run(world, spec, job_id=job_id)
    assert any("out of memory" in event.message for event in world.cloud.jobs.events(job_id).items)
    assert world.cloud.status(job_id)[0] == "queued"
    run(world, spec, job_id=job_id)


def test_a_question_that_needs_too_much_gets_the_reason(local_world, monkeypatch):
    world, spec = local_world, local_world.spec(train={"max_steps": 2, "checkpoint_every": 1})
    job_id, _ = run(world, spec)
    with monkeypatch.context() as patch:
        limited(patch, TopSession, "evaluating", on_a_cpu, lambda top: True)
        with pytest.raises(CloudOutOfMemory):
            predict(job_id, ["w1 w2"], world.settings)
    assert predict(job_id, ["w1 w2"], world.settings)


def test_another_runtime_error_is_not_taken_for_memory(local_world, monkeypatch):
    def defect():
        raise RuntimeError("a defect")

    limited(monkeypatch, TopSession, "forward", defect, lambda top: True)
    with pytest.raises(Exception, match="unexpected failure in the cloud"):
        run(local_world, local_world.spec())
