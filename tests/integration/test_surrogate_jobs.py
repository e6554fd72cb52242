"""Jobs with surrogates over their life: resumed with the same ones, accounted for, and alone with their secret."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from privtune.device.account.run_account import source_of
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder
from privtune.device.training import prepare
from privtune.shared.errors import JobConflict, JobPaused, PolicyRefused
from tests.support.planted import MAX_LENGTH, planted_world
from tests.support.running import adapter_hash, cost, ledger_entries, run, same_order, stop_at, train
from tests.support.world import InProcessCloud

SURROGATES = {"replace": "identifying"}


@pytest.fixture
def world(tmp_path):
    built = planted_world(tmp_path, InProcessCloud)
    yield built
    built.cloud.stop()


def spec(world, **changes):
    train = {"max_steps": 6, "batch_size": 4, "accumulation": 1, "max_length": MAX_LENGTH, "checkpoint_every": 2}
    return world.spec(cut=0, surrogates=SURROGATES, train=train, **changes)


def test_a_job_that_was_paused_ends_as_one_that_was_not(world):
    whole = train(world, spec(world))
    other = world.cloud.create_job(spec(world))
    secret = JobFolder(world.settings.home, whole).load().surrogate_secret
    same_order(world, whole, other)
    watcher, stop = stop_at(3)
    with pytest.raises(JobPaused):
        train(world, spec(world), job_id=other, watcher=watcher, stop=stop)
    train(world, spec(world), job_id=other)
    assert JobFolder(world.settings.home, other).load().surrogate_secret == secret
    assert adapter_hash(world, other) == adapter_hash(world, whole)


def test_ctrl_c_pauses_while_records_are_replaced(world):
    job_id, stop = world.cloud.create_job(spec(world)), threading.Event()
    stop.set()
    with pytest.raises(JobPaused, match="while surrogates were drawn; nothing of the data was sent"):
        train(world, spec(world), job_id=job_id, stop=stop)
    train(world, spec(world), job_id=job_id)


@pytest.mark.parametrize("change", ["rules", "terms"])
def test_a_job_is_not_resumed_with_other_surrogates(world, change):
    job_id = world.cloud.create_job(spec(world))
    watcher, stop = stop_at(2)
    with pytest.raises(JobPaused):
        train(world, spec(world), job_id=job_id, watcher=watcher, stop=stop)
    folder = JobFolder(world.settings.home, job_id)
    if change == "rules":
        folder.save(replace(folder.load(), surrogate_fingerprint="of another version"))
    else:
        (world.folder / "terms.txt").write_text("another term\n")
    with pytest.raises(JobConflict, match=r"not those that job|own terms differ"):
        train(world, spec(world), job_id=job_id)


def test_other_surrogates_are_another_noise_distribution_where_there_is_noise(world, monkeypatch):
    for _ in range(2):
        train(world, spec(world))
    assert (cost(world).noises, cost(world).jobs) == (1, 2)
    noisy = spec(world, mechanism={"name": "dchi"})
    train(world, noisy, settings=world.device(another_noise=True))
    assert cost(world).noises == 2
    monkeypatch.setattr(prepare, "load_bottom", lambda *_, **__: pytest.fail("a model is fetched for a refused job"))
    with pytest.raises(PolicyRefused, match="other surrogates: with noise every job draws its own"):
        train(world, noisy)


def test_a_label_is_drawn_once_whatever_the_surrogates(world):
    first = train(world, spec(world, label_epsilon=2.0))
    second = train(world, spec(world, label_epsilon=2.0))
    drawn = {
        one["job"]: one["records"]
        for one in ledger_entries(world)
        if one["kind"] == "admitted" and one["part"] == "labels"
    }
    assert (drawn[first], drawn[second]) == (len(world.data.load("classification")), 0)


def test_a_record_that_can_not_be_used_leaves_no_job_behind(world):
    empty = world.folder / "empty.tsv"
    empty.write_text("text\tlabel\nMy name is Ottilie.\t1\nMy name is Marisol.\t1\n")
    job_id = world.cloud.create_job(spec(world))
    with pytest.raises(Exception, match="the same label"):
        run(world, spec(world), DataSource(path=str(empty)), job_id=job_id)
    assert not JobFolder(world.settings.home, job_id).exists()
    assert source_of(str(empty)) == str(empty)
