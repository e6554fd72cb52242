"""Invariant 7: an exported adapter gives the split pipeline's own answers in plain transformers + peft."""

import json
import threading

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from privtune.device.data.source import DataSource
from privtune.device.export.export_job import export_job
from privtune.device.inference.predict import predict
from privtune.shared.errors import InvalidInput, JobConflict, JobNotFound, JobPaused, StorageFull
from privtune.shared.modeling.load import load_tokenizer
from tests.support.running import train
from tests.support.texts import TEXTS
from tests.support.world import Watcher


@pytest.mark.parametrize("changes", [{"cut": 0}, {"cut": 2}, {"labels": "shared", "num_labels": 2}])
def test_a_classifier(local_world, changes):
    world = local_world
    job_id = train(world, world.spec(**changes))
    folder = export_job(job_id, world.folder / "exported", world.settings)
    names = json.loads((folder / "labels.json").read_text())
    assert "high" in str(names)
    base = AutoModelForSequenceClassification.from_pretrained(world.models["enc"], num_labels=2)
    model = PeftModel.from_pretrained(base, folder).eval()
    batch = load_tokenizer(str(world.models["enc"]))(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.softmax(-1)
    split = [list(p.probabilities.values()) for p in predict(job_id, TEXTS, world.settings)]
    np.testing.assert_allclose(plain.numpy(), np.array(split), atol=1e-5)


def test_a_language_model(local_world):
    world = local_world
    rows = world.folder / "lm.jsonl"
    rows.write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS * 8))
    job_id = train(world, world.spec(model="dec", task="causal-lm"), DataSource(path=str(rows)))
    folder = export_job(job_id, world.folder / "exported", world.settings)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.models["dec"]), folder).eval()
    ids_BT = load_tokenizer(str(world.models["dec"]))(TEXTS[:1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        tuned = model(input_ids=ids_BT).logits
        with model.disable_adapter():
            untouched = model(input_ids=ids_BT).logits
    assert not torch.allclose(tuned, untouched)


def test_full_tuning_writes_the_changed_weights(local_world):
    world = local_world
    job_id = train(world, world.spec(tuning={"method": "full"}, optim={"learning_rate": 1e-3}))
    folder = export_job(job_id, world.folder / "exported", world.settings)
    tuned = load_file(folder / "tuned.safetensors")
    assert any("layer.2" in name for name in tuned)
    assert not any("layer.0." in name for name in tuned)


def test_a_job_of_another_device(local_world):
    with pytest.raises(JobNotFound, match="this device holds nothing"):
        export_job("ftjob-unknown", local_world.folder / "out", local_world.settings)


def test_an_unfinished_job(local_world):
    world, stop = local_world, threading.Event()
    spec = world.spec()
    job_id = world.cloud.create_job(spec)
    with pytest.raises(JobPaused):
        train(world, spec, watcher=Watcher(at_step=lambda _: stop.set()), stop=stop, job_id=job_id)
    with pytest.raises(JobConflict, match="not finished"):
        export_job(job_id, world.folder / "out", world.settings)


def test_a_folder_in_use_is_not_overwritten(local_world):
    world = local_world
    job_id = train(world, world.spec())
    target = world.folder / "out"
    target.mkdir()
    (target / "precious").write_text("x")
    with pytest.raises(InvalidInput, match="not empty"):
        export_job(job_id, target, world.settings)
    assert (target / "precious").read_text() == "x"


def test_a_full_disk_leaves_nothing_half_written(local_world, monkeypatch):
    world = local_world
    job_id = train(world, world.spec())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("privtune.device.export.export_job.write_bytes", full)
    with pytest.raises(StorageFull, match="No space left"):
        export_job(job_id, world.folder / "out", world.settings)
    assert not list(world.folder.glob("*out*"))
