"""Jobs whose passes the cloud computes as one end where they would have ended alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from privtune.cloud.gateway import split_service
from privtune.device.home.job_folder import JobFolder
from privtune.shared.modeling.joint_top import JointTop
from tests.support.running import adapter_file, run
from tests.support.world import Watcher, build_world

JOBS, STEPS = 3, 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("together"))
    yield built
    built.cloud.stop()


def specs(world):
    train = {"max_steps": STEPS, "accumulation": 1}
    return [world.spec(tuning={"rank": 2 + n, "dropout": 0.1}, train=train | {"seed": n}) for n in range(JOBS)]


def adapters(world, jobs):
    return [value for job in jobs for _, value in sorted(load_file(adapter_file(world, job)).items())]


def test_three_jobs_at_once(world, monkeypatch):
    alone = [run(world, spec, validation=False)[0] for spec in specs(world)]
    world.restart(batch_jobs=4)
    members, forward, gate = [], JointTop.forward, threading.Barrier(JOBS)
    compute = split_service.compute_together

    def counted(self, these, **how):
        members.append(len(these))
        return forward(self, these, **how)

    def slowly(works):
        threading.Event().wait(0.02)  # the others' messages come meanwhile
        compute(works)

    monkeypatch.setattr(JointTop, "forward", counted)
    monkeypatch.setattr(split_service, "compute_together", slowly)

    def again(number, spec):
        home = world.folder / f"home{number}"
        job = world.cloud.create_job(spec)
        first = JobFolder(world.settings.home, alone[number]).load()
        JobFolder(home, job).save(replace(first, final_step=None))
        watcher = Watcher(at_step=lambda info: gate.wait(60))
        return run(world, spec, validation=False, settings=world.device(home=home), job_id=job, watcher=watcher)[0]

    with ThreadPoolExecutor(JOBS) as threads:
        together = [done.result() for done in [threads.submit(again, *one) for one in enumerate(specs(world))]]
    assert [world.cloud.status(job)[0] for job in together] == ["succeeded"] * JOBS
    assert max(members) > 1
    for one, other in zip(adapters(world, alone), adapters(world, together), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
