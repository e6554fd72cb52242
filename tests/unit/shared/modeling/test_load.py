from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch

from privtune.shared.errors import ModelNotFound, ModelUnsupported, PackageMissing
from privtune.shared.modeling.load import build_task_model, load_task_model, load_tokenizer
from privtune.shared.modeling.partition import Partition
from tests.support.tiny_models import CONFIGS, DECODERS, save_model, tiny_classifier, tiny_lm, tiny_tokenizer


def same(first, second) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("kind", CONFIGS)
def test_bare_checkpoint_gets_a_head_from_the_seed_without_noise(kind, tmp_path, caplog, capfd):
    tiny_classifier(kind).base_model.save_pretrained(tmp_path)
    capfd.readouterr()
    first = load_task_model(str(tmp_path), "classification", num_labels=4, seed=7)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = load_task_model(str(tmp_path), "classification", num_labels=4, seed=7)
    other = load_task_model(str(tmp_path), "classification", num_labels=4, seed=8)
    assert same(first, again)
    assert not same(first, other)
    assert first.num_labels == 4
    assert not first.training
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_stored_classifier_is_drawn_anew_but_its_inner_layers_are_kept(tmp_path):
    stored = tiny_classifier("roberta", num_labels=4)
    stored.save_pretrained(tmp_path)
    for labels in (2, 4):
        model = load_task_model(str(tmp_path), "classification", num_labels=labels)
        assert model.fresh_parameters == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
        assert torch.equal(model.classifier.dense.weight, stored.classifier.dense.weight)


@pytest.mark.parametrize("kind", DECODERS)
def test_language_models_keep_every_weight(kind, tmp_path):
    stored = tiny_lm(kind)
    stored.save_pretrained(tmp_path)
    model = load_task_model(str(tmp_path), "causal-lm")
    assert same(stored, model)
    assert model.fresh_parameters == frozenset()


def test_decoder_classifiers_get_a_pad_id(tmp_path):
    tiny_lm("llama", pad_token_id=None).save_pretrained(tmp_path)
    assert load_task_model(str(tmp_path), "classification").config.pad_token_id == 3


@pytest.mark.parametrize("kind", CONFIGS)
def test_meta_build_has_real_buffers_and_the_same_fingerprint(kind):
    model = tiny_classifier(kind)
    shell = build_task_model(model.config, "classification")
    assert {p.device.type for p in shell.parameters()} == {"meta"}
    real = dict(model.named_buffers())
    assert all(torch.equal(buffer, real[name]) for name, buffer in shell.named_buffers())
    assert Partition(shell).fingerprint() == Partition(model).fingerprint()


def test_pickle_only_and_code_carrying_folders_are_refused(tmp_path):
    model = tiny_classifier("bert")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelUnsupported, match="pickle"):
        load_task_model(str(tmp_path), "classification")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.py--Evil"}}))
    with pytest.raises(ModelUnsupported, match="code"):
        load_task_model(str(tmp_path), "classification")


def test_what_is_not_there_or_does_not_fit_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for ref in ("nobody/no-such-model", "/no/such/folder", str(tmp_path), "/no/file.gguf", f"{tmp_path}::no.gguf"):
        for load in (lambda r: load_task_model(r, "classification"), load_tokenizer):
            with pytest.raises(ModelNotFound) as caught:
                load(ref)
            assert "\n" not in str(caught.value)
    tiny_classifier("bert").save_pretrained(tmp_path)
    with pytest.raises(ModelUnsupported, match="encoder"):
        load_task_model(str(tmp_path), "causal-lm")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ModelUnsupported, match=r"'t5', which can't be split.*docs/models\.md"):
        load_task_model(str(tmp_path), "classification")


def test_missing_base_weights_are_not_made_up(tmp_path):
    model = tiny_classifier("bert", num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelUnsupported, match="lack weights"):
        load_task_model(str(tmp_path), "classification")


def test_missing_gguf_package_says_how_to_install(monkeypatch):
    monkeypatch.setattr("privtune.shared.packages.importlib.util.find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match=r"pip install '\.\[gguf\]'"):
        load_task_model("x.gguf", "causal-lm")


def test_tokenizer_without_pad_pads_with_the_end_token_and_says_so(tmp_path, caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    tiny_lm("gpt2").save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="privtune.shared.modeling.load"):
        loaded = load_tokenizer(str(tmp_path))
    assert loaded.pad_token_id == 3
    assert loaded.padding_side == "right"
    assert "no pad token" in caplog.text


def test_a_file_that_is_overwritten_changes_no_loaded_model(tmp_path):
    first = save_model(tmp_path / "first", "bert", "classification")
    other = save_model(tmp_path / "other", "bert", "classification", seed=5)
    model = load_task_model(str(first), "classification")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    shutil.copy(other / "model.safetensors", first / "model.safetensors")  # in place, as cp and rsync --inplace write
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
