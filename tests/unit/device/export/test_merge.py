"""The adapter's arithmetic: what peft itself computes, for every architecture; what is not understood is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from privtune.device.export.merge import merge_into
from privtune.shared.errors import ArtifactCorrupt, ModelUnsupported
from privtune.shared.modeling.adapter_folder import add_head_to_adapter, base_sha256
from privtune.shared.modeling.load import load_task_model
from privtune.shared.modeling.lora import save_adapter, train_fully, trainable_parameters
from privtune.shared.modeling.partition import Partition
from tests.support.adapters import disturb, split_logits
from tests.support.tiny_models import CONFIGS, DECODERS, tiny_batch, tiny_classifier, tiny_lm

IDS_BT, MASK_BT = tiny_batch()
# Every linear layer of a block of that architecture, by peft's own choice.
TARGETS = "all-linear"


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS_BT, attention_mask=MASK_BT).logits[MASK_BT[:, 0].bool()]


def peft_folder(model, folder, **changes):
    """An adapter of plain peft with random weights, saved; and the tuned model's answers."""
    settings = {
        "r": 3,
        "lora_alpha": 6.0,
        "target_modules": TARGETS,
        "fan_in_fan_out": model.config.model_type == "gpt2",
    }
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(**{**settings, **changes})).eval()
    disturb([p for name, p in tuned.named_parameters() if "lora_" in name])
    tuned.save_pretrained(folder)
    return logits(tuned)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_classifier_answers_as_in_peft(kind, rslora, tmp_path):
    base = tiny_classifier(kind)
    tuned_BC = peft_folder(base, tmp_path, use_rslora=rslora)
    assert not torch.allclose(tuned_BC, logits(base), atol=1e-2)
    merge_into(base, tmp_path)
    # Random adapters are far larger than trained ones, and W x + s B A x rounds otherwise than (W + s B A) x.
    torch.testing.assert_close(logits(base), tuned_BC, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_language_model_answers_as_in_peft(kind, tmp_path):
    base = tiny_lm(kind)
    tuned_BTV = peft_folder(base, tmp_path)
    merge_into(base, tmp_path)
    torch.testing.assert_close(logits(base), tuned_BTV, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "mpnet", "llama", "gpt2"])
def test_every_weight_trained(kind, tmp_path):
    tiny_classifier(kind).save_pretrained(tmp_path / "base")
    partition = Partition(load_task_model(str(tmp_path / "base"), "classification", num_labels=3))
    top, head = partition.top(1), partition.head()
    train_fully(top)
    disturb([*trainable_parameters(top), *head.parameters()])
    save_adapter(top, tmp_path / "tuned")
    add_head_to_adapter(tmp_path / "tuned", head, task="classification", label_names=["x", "y", "z"])
    split_BC = split_logits(partition, 1, top, head, IDS_BT, MASK_BT)
    whole = load_task_model(str(tmp_path / "base"), "classification", num_labels=3)
    before_BC = logits(whole)
    merge_into(whole, tmp_path / "tuned")
    assert not torch.allclose(logits(whole), before_BC, atol=1e-2)
    torch.testing.assert_close(logits(whole), split_BC, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"alpha_pattern": {"query": 4}}, "alpha_pattern"),
        ({"rank_pattern": {"query": 4}}, "rank_pattern"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"something_of_next_year": 1}, "something_of_next_year"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change, named, tmp_path):
    base = tiny_classifier("bert")
    peft_folder(base, tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(ModelUnsupported, match=named):
        merge_into(base, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_dora_and_embedding_adapters_of_peft_itself_are_refused(tmp_path):
    peft_folder(tiny_lm("llama"), tmp_path / "dora", use_dora=True)
    with pytest.raises(ModelUnsupported, match="use_dora"):
        merge_into(tiny_lm("llama"), tmp_path / "dora")
    peft_folder(tiny_lm("llama"), tmp_path / "table", target_modules=["embed_tokens"])
    with pytest.raises(ModelUnsupported, match="lora_embedding"):
        merge_into(tiny_lm("llama"), tmp_path / "table")


def test_the_adapter_of_another_shape_is_refused(tmp_path):
    peft_folder(tiny_lm("llama"), tmp_path)
    with pytest.raises(ArtifactCorrupt, match="in this base it is"):
        merge_into(tiny_lm("llama", intermediate_size=40), tmp_path)
    with pytest.raises(ArtifactCorrupt, match="does not have"):
        merge_into(tiny_lm("gpt2"), tmp_path)


@pytest.mark.parametrize("damage", ["rank", "half", "bytes"])
def test_a_damaged_adapter_is_refused(damage, tmp_path):
    base = tiny_lm("llama")
    peft_folder(base, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    if damage == "rank":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif damage == "half":
        del tensors[name]
    save_file(tensors, file)
    if damage == "bytes":
        file.write_bytes(b"\xff" * 100)
    with pytest.raises(ArtifactCorrupt, match="fetch the adapter again"):
        merge_into(base, tmp_path)


def test_peft_loads_the_same_folder(tmp_path):
    """The comparison above is with the folder's own reader, not with the object that wrote it."""
    base = tiny_lm("gpt2")
    tuned = peft_folder(base, tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(logits(again), tuned)


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_the_hash_of_a_base(task, tmp_path):
    make = tiny_classifier if task == "classification" else tiny_lm
    make("llama").save_pretrained(tmp_path / "a")
    first = base_sha256(load_task_model(str(tmp_path / "a"), task, seed=1), task)
    assert first == base_sha256(load_task_model(str(tmp_path / "a"), task, seed=2, num_labels=7), task)
    other = load_task_model(str(tmp_path / "a"), task)
    with torch.no_grad():
        other.model.layers[2].mlp.up_proj.weight[3, 4] += 1e-6
    assert first != base_sha256(other, task)
