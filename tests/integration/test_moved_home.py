"""Of all copies of a home only the newest draws; a moved one sends what it sent before; a restored cloud continues."""

import hashlib
import shutil
import sqlite3
from contextlib import closing

import pytest

from privtune.device.account.home_archive import export_home, import_home, recover_home
from privtune.device.account.ledger import Ledger, outcomes
from privtune.device.data.source import DataSource
from privtune.shared.errors import HomeOutdated, JobPaused, PolicyRefused
from tests.support.running import adapter_hash, run, stop_at, train
from tests.support.texts import write_sentences
from tests.support.world import InProcessCloud


def short(world, noise_ratio):
    mechanism = {"name": "dchi", "params": {"noise_ratio": noise_ratio}}
    return world.spec(mechanism=mechanism, train={"max_steps": 2, "epochs": 1})


def few(world):
    """So few records that a job draws all of them."""
    return DataSource(path=str(write_sentences(world.folder / "few.tsv", 24)))


def drawn(home):
    with Ledger(home) as ledger:
        return [row["records"] for row in outcomes(ledger.entries())]


def test_a_restored_copy_may_not_draw(local_world):
    world = local_world
    spec, other, data = short(world, 1.0), short(world, 2.0), few(world)
    train(world, spec, data)
    old = world.settings.home.with_name("old")
    shutil.copytree(world.settings.home, old)
    train(world, other, data)
    restored = world.device(home=old, another_noise=False)
    before = drawn(old)
    with pytest.raises(HomeOutdated, match="older copy"):
        train(world, spec, data, settings=restored)
    assert drawn(old) == before
    recover_home(old)
    with pytest.raises(PolicyRefused, match="another noise distribution"):
        train(world, other, data, settings=restored)
    train(world, spec, data, settings=restored)
    assert drawn(old) == [*before, 0], "what it still has is sent as it was"


def test_a_moved_home_sends_what_it_sent_before(local_world):
    world = local_world
    spec, there, data = short(world, 1.0), world.folder / "there", few(world)
    train(world, spec, data)
    before = drawn(world.settings.home)
    export_home(world.settings.home, world.folder / "move.tar")
    with pytest.raises(HomeOutdated, match="moved to another machine"):
        train(world, spec, data)
    import_home(world.folder / "move.tar", there)
    train(world, spec, data, settings=world.device(home=there, another_noise=False))
    assert drawn(there) == [*before, 0]


@pytest.mark.slow
def test_a_restored_cloud_continues_with_the_device(local_world):
    world = local_world
    spec = world.spec(train={"max_steps": 4})
    watcher, stop = stop_at(2)
    job_id = world.cloud.create_job(spec)
    with pytest.raises(JobPaused):
        run(world, spec, watcher=watcher, stop=stop, job_id=job_id)
    backup, data = world.folder / "backup", world.folder / "cloud"
    backup.mkdir()
    with (
        closing(sqlite3.connect(data / "cloud.sqlite")) as one,
        closing(sqlite3.connect(backup / "cloud.sqlite")) as two,
    ):
        one.backup(two)  # first the database, then the files, as docs/operations.md says
    shutil.copytree(data / "jobs", backup / "jobs")
    run(world, spec, job_id=job_id)
    undisturbed = adapter_hash(world, job_id)
    world.cloud.stop()
    world.cloud = InProcessCloud(backup, world.models)
    world.settings = world.device(grpc_address=world.cloud.grpc_address, api_key=world.cloud.api_key)
    assert world.cloud.status(job_id)[0] == "paused"
    run(world, spec, job_id=job_id)
    restored = backup / "jobs" / job_id / "adapter" / "adapter_model.safetensors"
    assert hashlib.sha256(restored.read_bytes()).hexdigest() == undisturbed
