"""`privtune jobs delete` on both sides, and what a later job may still release."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from privtune.device.account.delete_job import delete_here
from privtune.device.home.job_folder import JobFolder
from privtune.shared.errors import JobConflict, PolicyRefused
from tests.support.builders import least_spec
from tests.support.owner import Owner
from tests.support.running import train

NOISE = {"name": "dchi", "params": {"noise_ratio": 1.0}}


def test_a_later_job_sends_the_same_bytes_or_is_refused(local_world):
    world = local_world
    world.settings = replace(world.settings, another_noise=False)
    spec = world.spec(mechanism=NOISE, train={"max_steps": 2, "epochs": 1})
    delete_here(world.settings.home, train(world, spec))
    second = train(world, spec)  # nothing is drawn, so the budget of one noise distribution allows it
    delete_here(world.settings.home, second, releases=True)
    with pytest.raises(JobConflict, match="never drawn again"):
        train(world, spec)
    other = world.spec(mechanism={"name": "dchi", "params": {"noise_ratio": 2.0}}, train={"max_steps": 2, "epochs": 1})
    with pytest.raises(PolicyRefused, match="another noise distribution"):
        train(world, other)


@pytest.fixture
def owner(plane, tmp_path, capsys):
    """At a terminal, before a control plane without a gateway."""
    environment = {"PRIVTUNE_CLOUD": plane.url, "PRIVTUNE_API_KEY": plane.key, "PRIVTUNE_HOME": str(tmp_path / "home")}
    return Owner(
        world=SimpleNamespace(environment=environment, settings=SimpleNamespace(home=tmp_path / "home")), capsys=capsys
    )


def ended_job(plane, owner):
    job_id = plane.make()
    plane.jobs.cancel(job_id)
    folder = JobFolder(owner.home, job_id)
    folder.save(folder.begin(least_spec(), (), None))
    return job_id


def test_both_sides_are_deleted_and_the_receipt_is_shown(plane, owner):
    job_id = ended_job(plane, owner)
    assert "what identifies, and words rarer than the 200,000" in owner("jobs", "show", job_id).out
    first = owner("jobs", "delete", job_id)
    assert first.code == 0
    assert "settings and secrets" in first.out
    assert "events" in first.out
    assert "Stays in the cloud: the receipt" in first.out
    assert not JobFolder(owner.home, job_id).path.exists()
    repeated = owner("jobs", "delete", job_id).out
    assert "This device held nothing of it, or no longer." in repeated
    assert "The cloud deleted it on 2" in repeated
    assert "Its receipt of then:" in repeated
    again = owner("jobs", "delete", job_id, "--json")
    assert again.code == 0
    found = json.loads(again.out)
    assert found["device"]["went"] == {}
    assert found["cloud"]["went"]["job"] == {"count": 1, "bytes": 0}
    assert owner("jobs", "show", job_id).code == 6


def test_a_job_that_runs_is_deleted_on_neither_side(plane, owner):
    job_id = plane.make()
    folder = JobFolder(owner.home, job_id)
    folder.save(folder.begin(least_spec(), (), None))
    done = owner("jobs", "delete", job_id)
    assert done.code == 6
    assert "Cancel it first" in done.line
    assert folder.exists()


def test_this_device_alone_and_a_job_that_nobody_has(plane, owner):
    job_id = ended_job(plane, owner)
    assert owner("jobs", "delete", job_id, "--here", PRIVTUNE_CLOUD="").code == 0
    assert plane.jobs.get(job_id).id == job_id
    assert owner("jobs", "delete", job_id, "--here").code == 6
    unknown = "ftjob-" + "0" * 24
    assert owner("jobs", "delete", unknown).code == 6
    folder = JobFolder(owner.home, unknown)  # of a cloud that has forgotten it
    folder.save(folder.begin(least_spec(), (), None))
    assert owner("jobs", "delete", unknown).code == 0
    assert not folder.path.exists()
