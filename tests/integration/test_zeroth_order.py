"""Zeroth-order jobs: one noised number a step trains the cloud, no gradient leaves, a resume redraws nothing."""

import contextlib
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from privtune.device.account.ledger import SLOPES, outcomes, spent
from privtune.device.account.run_account import source_of
from privtune.device.account.verify import check
from privtune.device.audit.attacks import slope_labels
from privtune.device.audit.attacks.attack import silent
from privtune.device.audit.jobs.transcript_audit import JobAudit, audit_job
from privtune.device.audit.sizes import QUICK
from privtune.device.cli import app
from privtune.device.home.policy import Budget, Policy
from privtune.device.inference.predict import predict
from privtune.device.release.slope_store import SlopeStore
from privtune.shared.errors import JobConflict, JobPaused, PolicyRefused
from privtune.shared.modeling.adapter_folder import PEFT_PREFIX
from privtune.shared.modeling.load import load_task_model
from privtune.shared.modeling.lora import adapter_state, attach_lora, trainable_parameters
from privtune.shared.modeling.optim import build_optimizer, build_schedule
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.random_directions import direction, set_gradients
from tests.support.running import (
    Died,
    adapter_file,
    die_after,
    ledger_entries,
    run,
    stop_at,
    transcript_folder,
)
from tests.support.transcripts import recorded_frames
from tests.support.world import Watcher

LEAST = {"metrics": ("euclidean",), "optimise_records": 0, "attacked": 20, "inverted": 5}
SLOPED = {
    "zeroth_order": {"epsilon": 4.0, "clip": 2.0},
    "train": {"max_steps": 14, "epochs": 2, "checkpoint_every": 4},
    "optim": {"learning_rate": 1e-2},
}


def owner_ledger(world, *words):
    done = CliRunner().invoke(app, ["ledger", *words, "--home", str(world.settings.home)])
    assert done.exit_code == 0, done.output
    return done.output


def slopes_of(world, job_id, steps):
    with contextlib.closing(SlopeStore(world.settings.home / "jobs" / job_id)) as store:
        return store.first(steps)


def sent_slopes(world, job_id):
    """Each (step, slope) that left, in order."""
    frames = recorded_frames(transcript_folder(world, job_id), job_id)
    return [(line["step"], frame.control.slope) for line, frame in frames if frame.HasField("control")]


def replayed(world, spec, job_id, steps):
    """What the public directions and the slopes that were sent make of the initial adapter, by its file's names."""
    top = Partition(load_task_model(str(world.models["enc"]), "classification", num_labels=2, seed=0)).top(spec.cut)
    attach_lora(top, spec.tuning, spec.train.seed)
    parameters = trainable_parameters(top)
    optimizer = build_optimizer([{"params": parameters, "lr": spec.optim.learning_rate}], spec.optim)
    schedule = build_schedule(optimizer, spec.optim, steps)
    for step, slope in enumerate(slopes_of(world, job_id, steps)):
        set_gradients(parameters, direction(parameters, "top", spec.train.seed, step), slope)
        optimizer.step()
        schedule.step()
    return {PEFT_PREFIX + name.replace(".default.", "."): value for name, value in adapter_state(top).items()}


def test_one_number_a_step_leaves_and_no_gradient(local_world):
    world = local_world
    world.settings = world.device(record_frames=True)
    spec = world.spec(**SLOPED)
    job_id, result = run(world, spec)
    kinds = {line["kind"] for line, _ in recorded_frames(transcript_folder(world, job_id), job_id)}
    assert kinds == {"FORWARD", "OUTPUT", "STEP"}
    sent = sent_slopes(world, job_id)
    assert sent == list(enumerate(slopes_of(world, job_id, 14)))
    assert all(math.isfinite(slope) for _, slope in sent)
    assert result.slopes.times == 2
    assert result.slopes.epsilon_after(2) == pytest.approx(4.0)
    entries = ledger_entries(world)
    (row,) = (row for row in outcomes(entries) if row["part"] == SLOPES)
    assert (row["epsilon"], row["delta"], row["slopes"]) == (pytest.approx(4.0), 1e-5, 14)
    cost = spent(entries, source_of(world.data.path))
    assert (cost.slope_nats, cost.label_nats) == (pytest.approx(4.0), pytest.approx(4.0))
    assert cost.nats is None, "clean vectors have no bound, whatever the slopes have"
    (own,) = json.loads(owner_ledger(world, "records", "--data-set", "train.tsv", "--worst", "1", "--json"))
    assert own["nats"] is None
    assert 0 < own["slope_nats"]["least"] < own["slope_nats"]["most"] <= 4.0
    assert own["worst"][0]["slope_nats"] == own["slope_nats"]["most"]
    assert f"most lost: line {own['worst'][0]['line']}" in owner_ledger(world, "records", "--data-set", "train.tsv")
    store = world.settings.home / "releases.sqlite"
    assert check(job_id, transcript_folder(world, job_id), entries, store).problems == []
    assert len(predict(job_id, ["w5 w6", "w50 w51"], world.settings)) == 2


def test_an_audit_attacks_the_slopes_that_were_sent(local_world):
    """With next to no noise it names nearly every label: it sees the slopes as the device took them."""
    world = local_world
    world.settings = world.device(record_frames=True)
    spec = world.spec(**SLOPED | {"zeroth_order": {"epsilon": 1000.0, "clip": 4.0}})
    job_id, _ = run(world, spec)
    asked = JobAudit(
        job_id=job_id,
        model=str(world.models["enc"]),
        sources=(world.data, world.validation),
        size=replace(QUICK, **LEAST),
    )
    audited = audit_job(asked, world.settings.home, silent).document
    (found,) = (one for one in audited["side_channels"] if one["name"] == slope_labels.NAME)
    assert found["figure"]["value"] >= 0.95
    assert found["figure"]["floor"] < 0.7


@pytest.mark.slow
def test_a_resumed_job_has_the_weights_that_its_slopes_make_of_the_first_ones(local_world):
    """Paused once, killed once: each slope that left is the stored one; they and the directions are all it takes."""
    world = local_world
    world.settings = world.device(record_frames=True)
    spec = world.spec(**SLOPED)
    job_id = world.cloud.create_job(spec)
    watcher, stop = stop_at(3)
    with pytest.raises(JobPaused):
        run(world, spec, job_id=job_id, watcher=watcher, stop=stop)
    with pytest.raises(Died):
        run(world, spec, job_id=job_id, watcher=Watcher(at_step=die_after(7)))
    run(world, spec, job_id=job_id)
    sent = sent_slopes(world, job_id)
    assert len(sent) > 14, "steps after the checkpoint were repeated"
    assert set(sent) == set(enumerate(slopes_of(world, job_id, 14)))
    found, expected = load_file(adapter_file(world, job_id)), replayed(world, spec, job_id, 14)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert all(value.any() for value in found.values())


def test_slopes_that_are_lost_are_not_drawn_again(local_world):
    world = local_world
    codes = {"name": "codes", "params": {"codes": 8, "dims": 2}}  # travels as ids of a public table
    spec = world.spec(**SLOPED | {"mechanism": codes})
    job_id = world.cloud.create_job(spec)
    watcher, stop = stop_at(3)
    with pytest.raises(JobPaused):
        run(world, spec, job_id=job_id, watcher=watcher, stop=stop)
    file = world.settings.home / "jobs" / job_id / "slopes.sqlite"
    backup = shutil.copy(file, world.folder / "older")
    with pytest.raises(Died):
        run(world, spec, job_id=job_id, watcher=Watcher(at_step=die_after(6)))
    shutil.copy(backup, file)
    with pytest.raises(JobConflict, match="lacks slopes that this job has sent"):
        run(world, spec, job_id=job_id)
    file.unlink()
    with pytest.raises(JobConflict, match="slopes of this job"):
        run(world, spec, job_id=job_id)


@pytest.mark.slow
def test_the_budget_counts_slopes_and_a_second_job_draws_its_own(local_world):
    world = local_world
    policy = Policy(protections=("none",), gradients="none", budget=Budget(nats_per_record=1e4))
    world.settings = world.device(policy=policy)
    noisy = world.spec(**SLOPED | {"mechanism": {"name": "gaussian"}, "train": {"max_steps": 2}})
    run(world, noisy)
    cost = spent(ledger_entries(world), source_of(world.data.path))
    assert cost.nats > cost.slope_nats == pytest.approx(4.0)
    little = policy.model_copy(update={"budget": Budget(nats_per_record=cost.nats + 3.0)})
    world.settings = world.device(policy=little)
    with pytest.raises(PolicyRefused, match="does not allow the job"):
        run(world, noisy)
