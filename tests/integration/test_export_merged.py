"""A merged model gives the split pipeline's own answers in plain transformers, whatever its base was loaded from."""

import json
import threading

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from privtune.device.data.source import DataSource
from privtune.device.export.export_job import ExportOptions, export_job
from privtune.device.export.gguf_file import write_gguf
from privtune.device.inference.predict import predict
from privtune.device.session.run_settings import RunSettings
from privtune.device.training.job import run_job
from privtune.shared.errors import InvalidInput, ModelUnsupported, VersionMismatch
from privtune.shared.job_spec import JobSpec
from privtune.shared.manifest import verify
from privtune.shared.modeling.load import load_task_model
from tests.support.gguf_models import RULES, byte_level, gguf_lm, logits
from tests.support.running import train
from tests.support.texts import TEXTS
from tests.support.tiny_models import tiny_classifier
from tests.support.world import InProcessCloud, Watcher

MERGED = ExportOptions(format="merged")
GGUF = ExportOptions(format="gguf")


def plain_answers(folder, texts=TEXTS):
    """Probabilities by plain transformers, padded batch, and the model."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        rows = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float().softmax(-1)
    return rows.numpy(), model


@pytest.mark.parametrize(
    "changes",
    [
        {"cut": 0},
        {"cut": 2},
        {"labels": "shared", "num_labels": 2},
        {"tuning": {"method": "full"}, "optim": {"learning_rate": 1e-3}},
        {"model": "dec"},
    ],
    ids=["cut0", "cut2", "shared-labels", "every-weight", "decoder"],
)
def test_a_classifier(local_world, changes):
    world = local_world
    job_id = train(world, world.spec(**changes))
    local = str(world.models[changes.get("model", "enc")])
    folder = export_job(job_id, world.folder / "out", world.device(local_model=local), MERGED)
    plain, model = plain_answers(folder)
    split = predict(job_id, TEXTS, world.settings)
    np.testing.assert_allclose(plain, [list(p.probabilities.values()) for p in split], atol=1e-4)
    assert [model.config.id2label[i] for i in plain.argmax(-1)] == [p.label for p in split]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not list(folder.glob("adapter*"))
    verify(folder)


def test_half_precision_is_half_as_large_and_answers_alike(local_world):
    world = local_world
    job_id = train(world, world.spec())
    settings = world.device(local_model=str(world.models["enc"]))
    whole = export_job(job_id, world.folder / "whole", settings, MERGED)
    half = export_job(job_id, world.folder / "half", settings, ExportOptions(format="merged", dtype="bf16"))
    np.testing.assert_allclose(plain_answers(half)[0], plain_answers(whole)[0], atol=0.05)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, whole)]
    assert 0.45 < sizes[0] / sizes[1] < 0.6


def language_job(world, model="dec"):
    rows = world.folder / "lm.jsonl"
    rows.write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS * 8))
    return train(world, world.spec(model=model, task="causal-lm"), DataSource(path=str(rows)))


def test_a_language_model_of_a_base_in_shards(local_world):
    world = local_world
    job_id = language_job(world)
    adapter = export_job(job_id, world.folder / "adapter", world.settings)
    whole = AutoModelForCausalLM.from_pretrained(world.models["dec"])
    whole.save_pretrained(world.folder / "shards", max_shard_size="20KB")
    AutoTokenizer.from_pretrained(world.models["dec"]).save_pretrained(world.folder / "shards")
    assert len(list((world.folder / "shards").glob("*.safetensors"))) > 1
    settings = world.device(local_model=str(world.folder / "shards"))
    merged = AutoModelForCausalLM.from_pretrained(export_job(job_id, world.folder / "merged", settings, MERGED))
    ids_BT = torch.arange(4, 24).reshape(2, 10)
    before_BTV = logits(whole, ids_BT)
    tuned_BTV = logits(PeftModel.from_pretrained(whole, adapter), ids_BT)
    torch.testing.assert_close(logits(merged, ids_BT), tuned_BTV, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before_BTV, tuned_BTV, atol=1e-2)


def test_gguf_in_and_gguf_out(tmp_path, monkeypatch):
    """The base is a GGUF file on both sides; merged and GGUF exports answer as base + adapter in plain peft."""
    monkeypatch.setenv("PRIVTUNE_CACHE", str(tmp_path / "cache"))
    tokenizer = byte_level(RULES["gpt-2"])
    base = tmp_path / "base.gguf"
    write_gguf(base, gguf_lm("llama", tokenizer), tokenizer, "fp32", name="tiny", source=None)
    cloud = InProcessCloud(tmp_path / "cloud", {"g": base})
    try:
        settings = RunSettings(
            grpc_address=cloud.grpc_address, api_key=cloud.api_key, home=tmp_path / "home", local_model=str(base)
        )
        rows = tmp_path / "lm.jsonl"
        rows.write_text('{"text": "the cat sat on 12 mats"}\n{"text": "the end of the cat"}\n' * 12)
        spec = _lm_spec("g")
        job_id = cloud.create_job(spec)
        run_job(job_id, spec, DataSource(path=str(rows)), None, settings, Watcher(), threading.Event())
        adapter = export_job(job_id, tmp_path / "adapter", settings)
        merged = export_job(job_id, tmp_path / "merged", settings, MERGED)
        gguf = export_job(job_id, tmp_path / "gguf", settings, GGUF)
    finally:
        cloud.stop()
    ids_BT = torch.tensor([tokenizer("the cat sat on the end")["input_ids"]])
    plain = load_task_model(str(base), "causal-lm")
    before_BTV = logits(plain, ids_BT)
    tuned_BTV = logits(PeftModel.from_pretrained(plain, adapter), ids_BT)
    assert not torch.allclose(before_BTV, tuned_BTV, atol=1e-2)
    for again in (
        AutoModelForCausalLM.from_pretrained(merged),
        AutoModelForCausalLM.from_pretrained(gguf, gguf_file="model-F32.gguf", dtype=torch.float32),
    ):
        torch.testing.assert_close(logits(again, ids_BT), tuned_BTV, atol=1e-4, rtol=1e-4)
    assert not hasattr(AutoModelForCausalLM.from_pretrained(merged).config, "quantization_config")
    assert sorted(path.name for path in gguf.iterdir()) == ["README.md", "manifest.json", "model-F32.gguf"]
    there = AutoTokenizer.from_pretrained(gguf, gguf_file="model-F32.gguf")
    assert there("the cat sat")["input_ids"] == tokenizer("the cat sat")["input_ids"]


def _lm_spec(model):
    return JobSpec.model_validate(
        {
            "model": model,
            "training_file": "device://rows",
            "task": "causal-lm",
            "codec": "fp32",
            "mechanism": {"name": "none"},
            "tuning": {"rank": 4, "dropout": 0.0},
            "optim": {"learning_rate": 1e-2},
            "train": {"batch_size": 8, "max_length": 16, "max_steps": 8, "epochs": 10},
        }
    )


def test_another_base_is_refused_by_its_hash(local_world):
    world = local_world
    job_id = train(world, world.spec())
    other = tiny_classifier("bert", num_labels=2, seed=1)  # the same shapes, other weights
    other.save_pretrained(world.folder / "other")
    AutoTokenizer.from_pretrained(world.models["enc"]).save_pretrained(world.folder / "other")
    with pytest.raises(VersionMismatch, match=r"not the adapter's base.*--local-model"):
        export_job(job_id, world.folder / "out", world.device(local_model=str(world.folder / "other")), MERGED)
    assert not list(world.folder.glob("*out*"))


def test_a_cloud_that_does_not_name_its_base(local_world):
    world = local_world
    job_id = train(world, world.spec())
    export_job(job_id, world.folder / "adapter", world.settings)
    manifest = world.settings.home / "jobs" / job_id / "adapter" / "manifest.json"
    facts = json.loads(manifest.read_text())
    del facts["base_sha256"]
    manifest.write_text(json.dumps(facts))
    with pytest.raises(VersionMismatch, match="--format peft"):
        export_job(job_id, world.folder / "out", world.device(local_model=str(world.models["enc"])), MERGED)


def test_without_the_base_the_command_says_how_to_get_it(local_world):
    world = local_world
    job_id = train(world, world.spec())
    with pytest.raises(InvalidInput, match=r"the cloud calls 'enc'.*--local-model"):
        export_job(job_id, world.folder / "out", world.settings, MERGED)


def test_what_gguf_can_not_hold(local_world):
    world = local_world
    classifier = train(world, world.spec())
    with pytest.raises(ModelUnsupported, match=r"this job is a classifier\. Possible: --format merged"):
        export_job(classifier, world.folder / "out", world.device(local_model=str(world.models["enc"])), GGUF)
    words = language_job(world)
    with pytest.raises(ModelUnsupported, match="WordLevel"):
        export_job(words, world.folder / "out", world.device(local_model=str(world.models["dec"])), GGUF)
    assert not list(world.folder.glob("*out*"))
