"""Adapters: in place on shared weights, and the same answers in plain transformers + peft."""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from privtune.shared.errors import ArtifactCorrupt, InvalidInput
from privtune.shared.job_spec import TuningSpec
from privtune.shared.modeling.adapter_folder import add_head_to_adapter
from privtune.shared.modeling.hf_calls import without_hub_code
from privtune.shared.modeling.load import load_task_model
from privtune.shared.modeling.lora import (
    adapter_state,
    attach_lora,
    load_adapter_state,
    save_adapter,
    train_fully,
    trainable_parameters,
)
from privtune.shared.modeling.partition import Partition, classification_readout
from tests.support.adapters import disturb, split_logits
from tests.support.tiny_models import CONFIGS, DECODERS, LAYERS, tiny_batch, tiny_classifier, tiny_lm

MODELING = Path(__file__).parents[4] / "shared" / "privtune" / "shared" / "modeling"
SPEC = TuningSpec(rank=2, alpha=8.0, dropout=0.0)


def test_attaching_warns_of_nothing_and_an_adapter_is_float32_on_half_weights():
    partition = Partition(tiny_classifier("bert").to(torch.bfloat16))
    top = partition.top(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach_lora(top, SPEC, seed=1)
    assert {parameter.dtype for parameter in trainable_parameters(top)} == {torch.float32}


@pytest.mark.parametrize("cut", [0, 1, LAYERS - 1])
@pytest.mark.parametrize("kind", CONFIGS)
def test_exported_classifier_is_the_same_in_plain_peft(kind, cut, tmp_path):
    tiny_classifier(kind).base_model.save_pretrained(tmp_path / "base")
    partition = Partition(load_task_model(str(tmp_path / "base"), "classification", num_labels=3))
    top, head = partition.top(cut), partition.head()
    attach_lora(top, SPEC, seed=1)
    disturb([*trainable_parameters(top), *head.parameters()])
    save_adapter(top, tmp_path / "adapter")
    add_head_to_adapter(tmp_path / "adapter", head, task="classification", label_names=["x", "y", "ü"])
    ids_BT, mask_BT = tiny_batch()
    split_BC = split_logits(partition, cut, top, head, ids_BT, mask_BT)

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tuned = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    whole_BC = tuned(input_ids=ids_BT, attention_mask=mask_BT).logits.detach()
    torch.testing.assert_close(split_BC, whole_BC, atol=1e-5, rtol=1e-5)
    assert {n for n, _ in tuned.named_parameters() if "lora_" in n} == {
        f"base_model.model.{name}" for name in adapter_state(top)
    }
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    labels = json.loads((tmp_path / "adapter" / "labels.json").read_text())
    assert labels == {"id2label": {"0": "x", "1": "y", "2": "ü"}, "num_labels": 3}
    assert not list((tmp_path / "adapter").glob(".*"))


@pytest.mark.parametrize("kind", DECODERS)
def test_exported_lm_is_the_same_in_plain_peft(kind, tmp_path):
    tiny_lm(kind).save_pretrained(tmp_path / "base")
    partition = Partition(load_task_model(str(tmp_path / "base"), "causal-lm"))
    top = partition.top(1)
    attach_lora(top, SPEC, seed=1)
    disturb(trainable_parameters(top))
    save_adapter(top, tmp_path / "adapter")
    add_head_to_adapter(tmp_path / "adapter", partition.head(), task="causal-lm", base_model="org/base")
    ids_BT, mask_BT = tiny_batch()
    readout_N = mask_BT.flatten().nonzero().flatten()
    split_NV = partition.head()(top.eval()(partition.bottom(1)(ids_BT, mask_BT), mask_BT, readout_N))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tuned = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    whole_NV = tuned(input_ids=ids_BT, attention_mask=mask_BT).logits.flatten(0, 1)[readout_N]
    torch.testing.assert_close(split_NV, whole_NV, atol=1e-5, rtol=1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", "org/base")


@pytest.mark.parametrize("kind", ["bert", "mpnet", "llama", "gpt2"])
def test_full_tuning_leaves_the_base_alone_and_exports_what_changed(kind, tmp_path):
    tiny_classifier(kind).base_model.save_pretrained(tmp_path / "base")
    model = load_task_model(str(tmp_path / "base"), "classification", num_labels=3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    partition = Partition(model)
    top, head = partition.top(1), partition.head()
    train_fully(top)
    disturb([*trainable_parameters(top), *head.parameters()])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    save_adapter(top, tmp_path / "tuned")
    add_head_to_adapter(tmp_path / "tuned", head, task="classification", label_names=["x", "y", "z"])
    state = load_file(tmp_path / "tuned" / "tuned.safetensors")
    assert state.keys() == set(adapter_state(top)) | {n for n, _ in head.named_parameters()}
    ids_BT, mask_BT = tiny_batch()
    split_BC = split_logits(partition, 1, top, head, ids_BT, mask_BT)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3).eval()
    assert not plain.load_state_dict(state, strict=False).unexpected_keys
    whole_BC = plain(input_ids=ids_BT, attention_mask=mask_BT).logits
    torch.testing.assert_close(split_BC, whole_BC, atol=1e-5, rtol=1e-5)


def test_adapters_of_two_tops_do_not_disturb_each_other():
    model = tiny_classifier("llama")
    partition = Partition(model)
    ids_BT, mask_BT = tiny_batch()
    readout_B = classification_readout("last", mask_BT.sum(1), ids_BT.shape[1])
    h_BTD = partition.bottom(1)(ids_BT, mask_BT)
    bare = partition.top(1)
    before = bare(h_BTD, mask_BT, readout_B)
    first, second = partition.top(1), partition.top(1)
    attach_lora(first, SPEC, seed=1)
    attach_lora(second, TuningSpec(rank=3, targets=("q_proj",)), seed=2)
    disturb(trainable_parameters(second), seed=6)
    assert torch.equal(first.eval()(h_BTD, mask_BT, readout_B), before)  # LoRA starts at zero
    assert torch.equal(bare(h_BTD, mask_BT, readout_B), before)
    assert not torch.equal(second.eval()(h_BTD, mask_BT, readout_B), before)
    base = {p.data_ptr() for p in model.parameters()}
    for top in (first, second):
        frozen = [p for p in top.parameters() if not p.requires_grad]
        assert {p.data_ptr() for p in frozen} <= base
    assert {n.rsplit(".", 4)[-4] for n in adapter_state(second)} == {"q_proj"}


def test_the_first_adapter_depends_on_the_seed_alone():
    def first(seed, noise):
        torch.manual_seed(noise)
        top = Partition(tiny_classifier("bert")).top(1)
        state = torch.get_rng_state()
        attach_lora(top, SPEC, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return adapter_state(top)

    one, same, other = first(1, 10), first(1, 20), first(2, 10)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_state_round_trip_and_a_foreign_state_is_refused(method):
    def fresh():
        top = Partition(tiny_classifier("gpt2")).top(1)
        train_fully(top) if method == "full" else attach_lora(top, SPEC, seed=1)
        return top

    first, second = fresh(), fresh()
    disturb(trainable_parameters(first))
    load_adapter_state(second, adapter_state(first))
    assert all(torch.equal(v, adapter_state(second)[n]) for n, v in adapter_state(first).items())
    state = adapter_state(first)
    state.pop(next(iter(state)))
    with pytest.raises(ArtifactCorrupt):
        load_adapter_state(second, state)


def test_default_targets_are_all_linear_layers_and_unknown_names_list_them():
    top = Partition(tiny_classifier("bert")).top(1)
    with pytest.raises(InvalidInput, match="dense, key, query, value"):
        attach_lora(top, TuningSpec(targets=("query", "wrong")), seed=0)
    attach_lora(top, SPEC, seed=0)
    assert len(adapter_state(top)) == (LAYERS - 1) * 6 * 2


def test_gradient_check_pointing_works_on_a_top():
    partition = Partition(tiny_classifier("llama"))
    ids_BT, mask_BT = tiny_batch()
    h_BTD = partition.bottom(1)(ids_BT, mask_BT)
    readout_B = classification_readout("last", mask_BT.sum(1), ids_BT.shape[1])
    gradients = []
    for checkpointing in (False, True):
        top = partition.top(1)
        attach_lora(top, SPEC, seed=1)
        disturb(trainable_parameters(top))
        top.train()
        if checkpointing:
            top.task.gradient_checkpointing_enable()
        top(h_BTD, mask_BT, readout_B).square().sum().backward()
        gradients.append([p.grad for p in trainable_parameters(top)])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_a_broken_adapter_folder_is_refused(tmp_path):
    head = Partition(tiny_classifier("bert")).head()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactCorrupt):
        add_head_to_adapter(tmp_path, head, task="classification")


def test_only_lora_imports_peft():
    """By source: transformers imports peft on its own where it is installed, so `sys.modules` says nothing."""
    sources = {path.stem: path.read_text() for path in MODELING.glob("*.py")}
    peft = re.compile(r"^\s*(from|import) (peft|shared\.modeling\.lora)\b", re.M)
    assert {name for name, source in sources.items() if peft.search(source)} == {"lora"}


def test_no_code_is_fetched_from_the_hub_when_peft_brings_bitsandbytes(monkeypatch):
    there = types.ModuleType("kernels")
    monkeypatch.setitem(sys.modules, "kernels", there)
    with without_hub_code(), pytest.raises(ImportError):
        importlib.import_module("kernels")
    assert sys.modules["kernels"] is there
    seen = []
    monkeypatch.setattr(peft, "get_peft_model", lambda *_: seen.append(sys.modules["kernels"]))
    attach_lora(Partition(tiny_lm("llama")).top(1), TuningSpec(), 0)
    assert seen == [None]
