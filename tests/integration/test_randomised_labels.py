"""`label_epsilon` in real jobs: what leaves reveals the one draw, not the label, over all epochs, resumes and jobs."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from privtune.device.account.ledger import outcomes
from privtune.device.cli import app
from privtune.device.home.job_folder import JobFolder
from privtune.device.noise.randomness import noise_source
from privtune.device.release.label_store import LabelStore, label_keys
from privtune.shared.errors import JobConflict, JobPaused, PolicyRefused
from tests.support import running
from tests.support.running import adapter_hash, cost, fixed_noise_seed, ledger_entries, same_order, transcript_folder
from tests.support.transcripts import recorded_frames
from tests.support.world import Watcher

PRIVATE = {"label_epsilon": 1.0, "train": {"max_steps": 30, "epochs": 3}}


run = partial(running.run, validation=False)


def records_of(world):
    """True labels and store keys, in file order."""
    records = world.data.load("classification")
    return np.array([int(record.label == "low") for record in records]), label_keys(records, ("high", "low"))


def draws(world, epsilon=1.0):
    """What is in the store, in file order."""
    true_N, keys = records_of(world)
    store = LabelStore(world.settings.home)
    assert store.missing(keys, epsilon) == 0
    told_N = store.randomised(keys, true_N, 2, epsilon, noise_source())
    store.close()
    return told_N


def gradients_sent(world, job_id):
    """Direction of the gradients that left for each record, in file order, one row an epoch: (E, N, D)."""
    handles, sent = {}, {}
    for line, frame in recorded_frames(transcript_folder(world, job_id), job_id):
        at = (frame.step, frame.micro_batch)
        if line["kind"] == "FORWARD" and frame.chunk_index == 0:
            handles[at] = list(frame.forward.record_ids)
        if line["kind"] == "GRADIENT":
            sent[at] = sent.get(at, b"") + frame.payload
    order = JobFolder(world.settings.home, job_id).load().order(160)
    rows = [[] for _ in order]
    for at in sorted(sent):
        gradient_ND = np.frombuffer(sent[at], "<f4").reshape(len(handles[at]), -1)
        for handle, row_D in zip(handles[at], gradient_ND, strict=True):
            rows[order[handle]].append(torch.from_numpy(row_D.copy()))
    return torch.nn.functional.normalize(torch.stack([torch.stack(row) for row in rows], dim=1), dim=2)


def agreement(side_N, labels_N):
    share = float((side_N == labels_N).mean())
    return max(share, 1 - share)


def test_what_left_tells_the_draw_and_epochs_add_nothing(local_world):
    world = local_world
    world.settings = world.device(record_frames=True)
    job_id, _ = run(world, world.spec(**PRIVATE))
    true_N, _ = records_of(world)
    told_N = draws(world)
    assert 0.55 < (told_N == true_N).mean() < 0.9, "e / (1 + e) of the labels are true"
    sides = []
    for directions_ND in gradients_sent(world, job_id):
        axis_D = torch.linalg.svd(directions_ND).Vh[0]
        side_N = (directions_ND @ axis_D > 0).long().numpy()
        sides.append(side_N if agreement(side_N, told_N) == (side_N == told_N).mean() else 1 - side_N)
    assert len(sides) == 3
    voted_N = (np.mean(sides, axis=0) > 0.5).astype(int)
    assert agreement(sides[0], told_N) > 0.95, "the attack works: it reads what the device trains with"
    assert agreement(voted_N, true_N) <= agreement(told_N, true_N) + 0.03


def test_entry_statement_and_ledger(local_world):
    world, watcher = local_world, Watcher()
    _, result = run(world, world.spec(**PRIVATE), watcher=watcher)
    train, labels = outcomes(ledger_entries(world))
    assert (train["part"], train["label_epsilon"]) == ("train", 1.0)
    assert (labels["part"], labels["records"], labels["epsilon"], labels["open"]) == ("labels", 160, 1.0, False)
    assert "at most 1 nats" in labels["claim"]
    assert watcher.starts[0].label_statement == result.label_statement
    assert cost(world).label_nats == 1.0
    assert cost(world).releases == 160, "labels are no releases"
    shown = CliRunner().invoke(app, ["ledger", "--home", str(world.settings.home)]).output
    assert "1 nats per label" in shown
    assert "randomised labels epsilon=1.0" in shown
    run(world, world.spec())
    assert cost(world).label_nats is None, "a job whose gradients reveal the labels leaves no bound"


def test_later_jobs_train_with_the_same_draw_and_a_larger_epsilon_costs_the_larger(local_world):
    world = local_world
    run(world, world.spec(**PRIVATE))
    first = draws(world)
    run(world, world.spec(**PRIVATE | {"optim": {"learning_rate": 1e-3}}))
    assert np.array_equal(draws(world), first)
    assert [row["records"] for row in outcomes(ledger_entries(world)) if row["part"] == "labels"] == [160, 0]
    run(world, world.spec(**PRIVATE | {"label_epsilon": 3.0}))
    run(world, world.spec(**PRIVATE | {"label_epsilon": 2.0}))
    assert cost(world).label_nats == 3.0


def test_a_paused_job_ends_with_the_adapter_of_an_undisturbed_one(local_world):
    world, spec = local_world, local_world.spec(**PRIVATE)
    first, _ = run(world, spec)
    second, stop = world.cloud.create_job(spec), threading.Event()
    same_order(world, first, second)
    pausing = Watcher(at_step=lambda info: stop.set() if info.step == 7 else None)
    with pytest.raises(JobPaused):
        run(world, spec, job_id=second, watcher=pausing, stop=stop)
    run(world, spec, job_id=second)
    assert adapter_hash(world, second) == adapter_hash(world, first)


def test_a_job_does_not_go_on_with_other_draws(local_world):
    world, spec = local_world, local_world.spec(**PRIVATE)
    job_id, stop = world.cloud.create_job(spec), threading.Event()
    pausing = Watcher(at_step=lambda info: stop.set() if info.step == 3 else None)
    with pytest.raises(JobPaused):
        run(world, spec, job_id=job_id, watcher=pausing, stop=stop)
    (world.settings.home / "labels.sqlite").unlink()
    with pytest.raises(JobConflict, match="randomised labels of this job have changed"):
        run(world, spec, job_id=job_id)
    run(world, spec)
    assert cost(world).label_nats == 2.0, "draws of a lost store and of a new one add up"


def test_draws_among_other_labels_add_up(local_world):
    world = local_world
    run(world, world.spec(**PRIVATE))
    path = world.folder / "train.tsv"
    path.write_text(path.read_text() + "w1 w2 w3\tmiddling\n")
    run(world, world.spec(**PRIVATE))
    assert cost(world).label_nats == 2.0, "one more label makes the draws of all records new ones"


def test_an_older_copy_of_the_store_is_noticed(local_world):
    import sqlite3

    world, watcher = local_world, Watcher()
    run(world, world.spec(**PRIVATE))
    with sqlite3.connect(world.settings.home / "labels.sqlite") as db:
        db.execute("DELETE FROM draws WHERE record IN (SELECT record FROM draws LIMIT 30)")
    run(world, world.spec(**PRIVATE), watcher=watcher)
    assert any("lost 30 randomised labels" in text for text in watcher.messages)
    assert cost(world).label_nats == 2.0


def test_a_fixed_seed_claims_nothing_and_is_never_reused(local_world):
    world, watcher = local_world, Watcher()
    with fixed_noise_seed():
        run(world, world.spec(**PRIVATE), watcher=watcher)
    assert "Nothing is claimed" in watcher.starts[0].label_statement.lines()[0]
    assert cost(world).label_nats is None
    assert not (world.settings.home / "labels.sqlite").exists()


def test_the_device_policy_wins(local_world):
    from privtune.device.home.policy import Policy

    world = local_world
    settings = world.device(policy=Policy(protections=("none",), max_label_epsilon=0.5))
    with pytest.raises(PolicyRefused, match=r"label_epsilon 1 is above the 0\.5 that the device allows"):
        run(world, world.spec(**PRIVATE), settings=settings)
    with pytest.raises(PolicyRefused, match="requires randomised labels"):
        run(world, world.spec(), settings=settings)
    assert not (world.settings.home / "labels.sqlite").exists()
    run(world, world.spec(**PRIVATE | {"label_epsilon": 0.5}), settings=settings)
