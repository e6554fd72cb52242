"""The model card: what a hub can parse, what the ledger says, and nothing of the data."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSequenceClassification

from privtune.device.export.export_job import ExportOptions, export_job
from privtune.device.export.push import plan_upload
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import JobSpec
from privtune.shared.manifest import write_manifest
from tests.support.running import ledger_entries, run


def train(world, **changes):
    return run(world, world.spec(**changes))[0]


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def test_it_tells_how_the_model_was_made_as_the_ledger_has_it(local_world):
    world = local_world
    job_id = train(world, mechanism={"name": "dchi", "params": {"noise_ratio": 5.0}}, cut=2)
    folder = export_job(job_id, world.folder / "out", world.settings, ExportOptions(base_name="owner/tiny-bert"))
    card = card_of(folder)
    assert card.data.base_model == "owner/tiny-bert"
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-classification"
    assert {"privtune", "lora", "peft"} <= set(card.data.tags)
    entries = ledger_entries(world)
    claim = next(entry["claim"] for entry in entries if entry["kind"] == "admitted" and entry["part"] == "train")
    assert f"`dchi` (noise_ratio = 5.0): {claim}" in card.text
    manifest = json.loads((world.settings.home / "jobs" / job_id / "adapter" / "manifest.json").read_text())
    for fact in (manifest["base_sha256"], "2 blocks and the embedding", "text classification, 2 classes", "rank 4"):
        assert fact in card.text
    assert "received perturbed vectors in place of the text" in card.text


def test_it_says_that_the_text_had_surrogates_and_no_noise(local_world):
    world = local_world
    job_id = train(world, mechanism={"name": "none"}, surrogates={"replace": "identifying"})
    card = card_of(export_job(job_id, world.folder / "out", world.settings, ExportOptions()))
    assert "received vectors, of a text in which surrogates replace what identifies, in place of the text" in card.text
    assert "without the surrogates and the noise" in " ".join(card.text.split())


@pytest.mark.parametrize("format", ["peft", "merged"])
def test_nothing_of_the_data_or_of_this_machine_is_in_the_folder(local_world, format):
    world = local_world
    job_id = train(world)
    settings = world.device(local_model=str(world.models["enc"]))
    folder = export_job(job_id, world.folder / "out", settings, ExportOptions(format=format, label_names=False))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"README.md", "manifest.json", "tokenizer.json"} <= files.keys()
    secrets = [str(world.folder), world.folder.name, "train.tsv", "sentences", '"high"', '"low"', job_id]
    secrets += world.data.load("classification").items[3].text.split("\n")
    found = [(name, secret) for name, data in files.items() for secret in secrets if secret.encode() in data]
    assert found == []


def test_label_names_are_in_the_model_and_not_on_the_card(local_world):
    world = local_world
    job_id = train(world)
    settings = world.device(local_model=str(world.models["enc"]))
    merged = export_job(job_id, world.folder / "merged", settings, ExportOptions(format="merged"))
    assert json.loads((merged / "config.json").read_text())["id2label"] == {"0": "high", "1": "low"}
    assert "high" not in card_of(merged).content
    assert card_of(merged).data.library_name == "transformers"
    assert card_of(merged).data.base_model is None  # "enc" is the cloud's own name, which no hub knows


def test_metrics_only_when_asked_for(local_world):
    world = local_world
    job_id = train(world)
    silent = export_job(job_id, world.folder / "silent", world.settings)
    assert "accuracy" not in card_of(silent).content
    told = export_job(job_id, world.folder / "told", world.settings, ExportOptions(metrics=True))
    report = json.loads((world.settings.home / "jobs" / job_id / "report.json").read_text())
    assert f"accuracy: {report['metrics']['accuracy']:.4f}" in card_of(told).text


def test_a_training_that_the_ledger_does_not_know_claims_nothing(local_world):
    world = local_world
    job_id = train(world)
    (world.settings.home / "ledger.sqlite").unlink()
    assert "nothing is claimed" in card_of(export_job(job_id, world.folder / "out", world.settings)).text


@pytest.mark.parametrize("given", ["/home/alice/base", "base", "a/b/c"])
def test_a_base_name_is_a_name_or_a_folder(given):
    with pytest.raises(InvalidInput, match="owner/model nor a folder here"):
        ExportOptions(base_name=given)
    with pytest.raises(InvalidInput, match="not a name like owner/model"):
        ExportOptions(base_name=given, format="merged")


def adapter_of(world, job_id):
    return world.folder / "cloud" / "jobs" / job_id / "adapter"


@pytest.mark.parametrize(
    ("theirs", "shown"),
    [("owner/tiny-bert", "owner/tiny-bert"), (None, "enc"), ("/srv/models/enc", "enc"), ("see http://evil", "enc")],
)
def test_the_base_is_called_as_on_the_hub_where_the_cloud_has_it_from_there(local_world, theirs, shown):
    world, said = local_world, []
    job_id = train(world)
    facts = json.loads((adapter_of(world, job_id) / "manifest.json").read_text())
    assert facts["base_hub_id"] is None  # a folder of the operator
    write_manifest(adapter_of(world, job_id), **facts | {"base_hub_id": theirs})
    folder = export_job(job_id, world.folder / "out", world.settings, say=said.append)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == shown
    card = card_of(folder)
    loads = theirs == shown
    assert card.data.base_model == (shown if loads else None)
    assert (f'from_pretrained("{shown}"' in card.text) == loads
    assert any("--base-name" in line for line in said) == (shown == "enc")


def test_the_adapter_loads_by_the_code_on_its_card_with_the_names_of_classes(local_world):
    """The owner names a folder of this machine, which an upload then refuses."""
    world = local_world
    job_id = train(world)
    base = str(world.models["enc"])
    folder = export_job(job_id, world.folder / "out", world.settings, ExportOptions(base_name=base))
    (code,) = re.findall(r"```python\n(.*?)```", card_of(folder).text, re.DOTALL)
    scope = {}
    exec(code.replace("FOLDER", str(folder)), scope)
    assert scope["model"].config.id2label == {0: "high", 1: "low"}
    assert scope["model"].config.label2id == {"high": 0, "low": 1}
    assert scope["tokenizer"]("w5")["input_ids"]
    auto = AutoPeftModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(auto.state_dict(), scope["model"].state_dict())
    with pytest.raises(InvalidInput, match=r"path of this machine.*--base-name owner/model"):
        plan_upload(folder)


def test_the_card_says_what_training_read_at_most(local_world):
    """The default of 128 tokens takes the 48 positions that the model has."""
    world = local_world
    job_id = train(world, train={"max_length": JobSpec.model_fields["train"].default_factory().max_length})
    folder = export_job(job_id, world.folder / "out", world.settings)
    assert "| Longest text in training | 48 tokens |" in card_of(folder).text


def test_an_adapter_has_no_number_type_to_choose():
    with pytest.raises(InvalidInput, match="--dtype is for"):
        ExportOptions(dtype="fp16")


def test_what_the_cloud_adds_to_an_adapter_stays_outside(local_world):
    """A cloud that would like its own file uploaded, or its own text on the card."""
    world = local_world
    job_id = train(world, label_epsilon=2.0)
    there = world.folder / "cloud" / "jobs" / job_id / "adapter"
    (there / "modeling_evil.py").write_text("print('run me')")
    write_manifest(there, base_sha256="see http://evil.example")
    folder = export_job(job_id, world.folder / "out", world.settings)
    assert (world.settings.home / "jobs" / job_id / "adapter" / "modeling_evil.py").exists()
    assert not (folder / "modeling_evil.py").exists()
    assert "evil" not in card_of(folder).content + (folder / "manifest.json").read_text()
    assert "not recorded" in card_of(folder).text
    assert "`randomised labels` (classes = 2, epsilon = 2.0)" in card_of(folder).text
