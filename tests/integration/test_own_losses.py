"""What each record of a real job lost: kept with the job, shown to its owner, never sent."""

import json

import numpy as np
from typer.testing import CliRunner

from privtune.device.account.own_losses import stored_losses
from privtune.device.account.run_account import source_of
from privtune.device.cli import app
from privtune.device.data.source import DataSource
from privtune.device.inference.evaluate import evaluate
from tests.support.running import cost, run, transcript_folder

NOISY = {"mechanism": {"name": "dchi"}, "train": {"max_steps": 5}}
BOUNDED = {"name": "gaussian", "params": {"support": "truncated"}}


def shown(world, *words):
    done = CliRunner().invoke(app, ["ledger", *words, "--home", str(world.settings.home)])
    assert done.exit_code == 0, done.output
    return done.output


def test_each_record_has_its_own_loss_beside_the_worst_case(local_world):
    world = local_world
    job_id, _ = run(world, world.spec(**NOISY, tail=1))
    source = source_of(world.data.path)
    (own,) = stored_losses(world.settings.home, source)
    drawn = len(own)
    assert 0 < drawn <= 160, "records that no step came to were not released"
    texts = world.data.load("classification")
    lengths = {record.number: len(record.text.split()) for record in texts}
    assert set(own.number_N.tolist()) <= set(lengths)
    assert (np.corrcoef(own.rows_N, [lengths[line] for line in own.number_N.tolist()])[0, 1]) > 0.99
    assert 0 < own.nats_N.min() < own.nats_N.max() <= cost(world).nats
    (facts,) = json.loads(shown(world, "records", "--data-set", "train.tsv", "--worst", "1", "--json"))
    assert facts["records"] == drawn
    assert facts["worst_case"] == cost(world).nats
    assert facts["worst"][0]["nats"] == facts["nats"]["most"] == own.nats_N.max()
    assert facts["worst"][0]["line"] == own.number_N[own.nats_N.argmax()]
    text = shown(world, "records")
    assert f"most lost: line {facts['worst'][0]['line']}" in text
    assert "depend on the private records" in text
    assert "really lost: median" in shown(world, "--data-set", "train.tsv")
    log = b"".join(path.read_bytes() for path in transcript_folder(world, job_id).iterdir())
    assert b"nats" not in log
    evaluate(job_id, DataSource(path=world.data.path), world.settings)
    (facts,) = json.loads(shown(world, "records", "--data-set", "train.tsv", "--json"))
    assert facts["records"] == 160


def test_another_noise_adds_to_the_same_records(local_world):
    world = local_world
    first, _ = run(world, world.spec(**NOISY))
    run(world, world.spec(**NOISY | {"mechanism": BOUNDED}))
    (one,) = json.loads(shown(world, "records", "--json", "--data-set", "train.tsv", "--job", first))
    (total,) = json.loads(shown(world, "records", "--json", "--data-set", "train.tsv"))
    assert one["fisher"] is None
    assert 0 < total["fisher"]["least"] < total["fisher"]["most"] < 1
    assert total["delta"] == 1e-5
    assert one["nats"]["most"] < total["nats"]["most"] <= total["worst_case"]
    assert one["worst_case"] < total["worst_case"] == cost(world).nats
