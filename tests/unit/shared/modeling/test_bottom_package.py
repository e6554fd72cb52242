"""A bottom package gives bit for bit what the whole model gives, and nothing that was touched is used."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from privtune.shared.errors import ArtifactCorrupt, CutOutOfRange, ModelUnsupported, PrivTuneError
from privtune.shared.manifest import write_manifest
from privtune.shared.modeling.bottom_package import bottom_from_model, load_bottom_package, write_bottom_package
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.partition import Partition
from tests.support.tiny_models import CONFIGS, DECODERS, LAYERS, tiny_batch, tiny_classifier, tiny_lm, tiny_tokenizer


def saved(model, folder) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def packed(ref, task, cut, folder):
    partition = Partition(load_task_model(ref, task, seed=99))  # the cloud knows neither labels nor seed
    return write_bottom_package(partition, load_tokenizer(ref), cut=cut, task=task, name="tiny", folder=folder)


def assert_same(first, second):
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "with-head"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_classifier_package_is_bitwise_the_whole(kind, bare, tmp_path):
    model = tiny_classifier(kind)
    ref = saved(model.base_model if bare else model, tmp_path / "model")
    ids_BT, mask_BT = tiny_batch()
    for cut in (0, 1, LAYERS - 1):
        packed(ref, "classification", cut, tmp_path / f"package{cut}")
        there = load_bottom_package(tmp_path / f"package{cut}", num_labels=5, seed=3)
        whole = Partition(load_task_model(ref, "classification", num_labels=5, seed=3))
        assert_same(there.bottom, whole.bottom(cut))
        assert_same(there.head, whole.head())
        assert torch.equal(there.bottom(ids_BT, mask_BT), whole.bottom(cut)(ids_BT, mask_BT))
        out_ND = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
        assert torch.equal(there.head(out_ND), whole.head()(out_ND))
        assert there.head(out_ND).shape == (4, 5)
        assert all(p.requires_grad for p in there.head.parameters())
        assert (there.fingerprint, there.readout) == (whole.fingerprint(), whole.readout)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", DECODERS)
def test_lm_package_is_bitwise_the_whole_and_ties_its_head(kind, tied, tmp_path):
    ref = saved(tiny_lm(kind, tie_word_embeddings=tied), tmp_path / "model")
    packed(ref, "causal-lm", 1, tmp_path / "package")
    there = load_bottom_package(tmp_path / "package")
    whole = bottom_from_model(ref, "causal-lm", 1)
    assert_same(there.bottom, whole.bottom)
    assert_same(there.head, whole.head)
    ids_BT, mask_BT = tiny_batch()
    h_BTD = there.bottom(ids_BT, mask_BT)
    assert torch.equal(h_BTD, whole.bottom(ids_BT, mask_BT))
    assert torch.equal(there.head(h_BTD[0]), whole.head(h_BTD[0]))
    for part in (there, whole):
        table = part.bottom.task.get_input_embeddings().weight
        assert (part.head.lm_head.weight.data_ptr() == table.data_ptr()) == tied
        assert not any(p.requires_grad for p in part.head.parameters())


def test_package_holds_nothing_above_the_cut_nor_the_clouds_paths(tmp_path):
    ref = saved(tiny_lm("llama"), tmp_path / "model")
    manifest = packed(ref, "causal-lm", 1, tmp_path / "package")
    names = load_file(tmp_path / "package" / "bottom.safetensors").keys()
    assert {n.split(".")[2] for n in names if ".layers." in n} == {"0"}
    assert "model.norm.weight" not in names
    assert {"model.embed_tokens.weight"} <= names
    assert (manifest["model"], manifest["task"], manifest["cut"], manifest["num_layers"]) == ("tiny", "causal-lm", 1, 3)
    for path in (tmp_path / "package").glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path.name


def test_package_facts(tmp_path):
    ref = saved(tiny_classifier("roberta"), tmp_path / "model")
    packed(ref, "classification", 2, tmp_path / "package")
    there = load_bottom_package(tmp_path / "package")
    assert (there.hidden_size, there.n_layers, there.cut, there.task) == (32, 3, 2, "classification")
    assert there.max_positions == 46  # 48 rows, two of them kept for padding
    assert there.tokenizer("w1 w2")["input_ids"] == [2, 5, 6, 3]
    tokens = load_tokenizer(ref)("w1 w2", padding="max_length", max_length=6)
    assert tokens["attention_mask"] == [1, 1, 1, 1, 0, 0]


@pytest.fixture
def package(tmp_path):
    ref = saved(tiny_classifier("bert"), tmp_path / "model")
    packed(ref, "classification", 1, tmp_path / "package")
    return tmp_path / "package"


def test_changed_bytes_are_refused(package):
    path = package / "bottom.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactCorrupt, match=r"bottom\.safetensors"):
        load_bottom_package(package)
    path.unlink()
    with pytest.raises(ArtifactCorrupt):
        load_bottom_package(package)


def rehash(package, **changes):
    facts = json.loads((package / "manifest.json").read_text())
    facts.pop("files")
    write_manifest(package, **{**facts, **changes})


def test_consistent_hashes_do_not_save_a_rigged_package(package):
    rehash(package, cut=2)
    with pytest.raises(ArtifactCorrupt, match="tensors"):
        load_bottom_package(package)
    rehash(package, cut=9)
    with pytest.raises(ArtifactCorrupt, match="cut"):
        load_bottom_package(package)
    rehash(package, cut=1, format=2)
    with pytest.raises(ModelUnsupported, match="format"):
        load_bottom_package(package)
    rehash(package, format=1, fingerprint="0")
    with pytest.raises(ArtifactCorrupt, match="configuration"):
        load_bottom_package(package)
    config = json.loads((package / "config.json").read_text())
    (package / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x--y"}}))
    rehash(package)
    with pytest.raises(ModelUnsupported, match="code"):
        load_bottom_package(package)


def test_a_tensor_of_another_shape_is_refused(package):
    state = load_file(package / "bottom.safetensors")
    name = "bert.embeddings.LayerNorm.weight"
    save_file({**state, name: torch.ones(7)}, package / "bottom.safetensors")
    rehash(package)
    with pytest.raises(ArtifactCorrupt, match="LayerNorm"):
        load_bottom_package(package)


def test_cut_out_of_range(tmp_path):
    ref = saved(tiny_classifier("bert"), tmp_path / "model")
    with pytest.raises(CutOutOfRange):
        bottom_from_model(ref, "classification", LAYERS)
    with pytest.raises(CutOutOfRange):
        packed(ref, "classification", LAYERS, tmp_path / "package")


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "evil/kernels:attention"},
        {"_attn_implementation": "evil/kernels"},
        {"_attn_implementation_internal": "evil/kernels"},
        {"experts_implementation": "evil/kernels"},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"kernel_config": {"x": "evil/kernels"}, "use_kernels": True},
        {"made_up": {"attn_implementation": "evil/kernels"}},
        {"torch_dtype": "float16", "dtype": "bfloat16"},
    ],
)
def test_what_a_config_says_of_loaders_is_not_believed(changes, tmp_path, monkeypatch):
    from transformers.integrations import hub_kernels

    def reached(*_, **__):
        raise AssertionError("the kernel loader was reached")

    for name in ("get_kernel", "load_and_register_attn_kernel"):
        monkeypatch.setattr(hub_kernels, name, reached, raising=False)
    packed(saved(tiny_lm("llama"), tmp_path / "model"), "causal-lm", 1, tmp_path / "package")
    before = load_bottom_package(tmp_path / "package")
    edited(tmp_path / "package", changes)
    there = load_bottom_package(tmp_path / "package")
    assert_same(there.bottom, before.bottom)
    config = there.bottom.task.config
    assert config._attn_implementation == before.bottom.task.config._attn_implementation
    assert not any(hasattr(config, name) for name in ("quantization_config", "kernel_config", "use_kernels"))


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"vocab_size": 1 << 40}, ArtifactCorrupt),
        ({"num_hidden_layers": 10**6}, ArtifactCorrupt),
        ({"hidden_size": "x"}, ArtifactCorrupt),
        ({"rope_parameters": {"rope_type": "y"}}, ModelUnsupported),  # no small copy of it runs
    ],
)
def test_an_impossible_config_is_refused(changes, refusal, tmp_path):
    packed(saved(tiny_lm("llama"), tmp_path / "model"), "causal-lm", 1, tmp_path / "package")
    edited(tmp_path / "package", changes)
    with pytest.raises(refusal):
        load_bottom_package(tmp_path / "package")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt_neo", "attention_types": [[["local"], LAYERS]], "num_layers": LAYERS},
        {"model_type": "codegen", "rotary_dim": 32},
        {"model_type": "gptj", "rotary_dim": 32},
    ],
)
def test_a_config_whose_tables_would_fill_the_memory_is_refused(changes, tmp_path):
    packed(saved(tiny_lm("llama"), tmp_path / "model"), "causal-lm", 1, tmp_path / "package")
    edited(tmp_path / "package", changes | {"rope_parameters": None, "max_position_embeddings": 1 << 24})
    with pytest.raises(ModelUnsupported, match="tables of more than 1024 MiB"):
        load_bottom_package(tmp_path / "package")


HOSTILE = (None, True, -1, 0, 2**24, 10**30, 1e308, "x", "evil/kernels", "../x", [], [[]] * 9, {}, {"x": {"y": "z/z"}})
NAMES = (
    "auto_map",
    "trust_remote_code",
    "quantization_config",
    "attn_implementation",
    "use_kernels",
    "tokenizer_class",
)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A package of a tiny decoder, for copies of it to be changed."""
    folder = tmp_path_factory.mktemp("honest")
    packed(saved(tiny_lm("llama"), folder / "model"), "causal-lm", 1, folder / "package")
    return folder / "package"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_no_config_reaches_a_loader_or_raises_anything_but_a_refusal(data, honest, tmp_path_factory, monkeypatch):
    from transformers import dynamic_module_utils
    from transformers.integrations import hub_kernels

    def reached(*_, **__):
        raise SystemExit("code of the package, or a kernel, was reached")

    monkeypatch.setattr(hub_kernels, "get_kernel", reached, raising=False)
    monkeypatch.setattr(hub_kernels, "load_and_register_attn_kernel", reached, raising=False)
    monkeypatch.setattr(dynamic_module_utils, "get_class_from_dynamic_module", reached)
    package = shutil.copytree(honest, tmp_path_factory.mktemp("hostile") / "package")
    file = data.draw(st.sampled_from(["config.json", "tokenizer_config.json"]))
    named = st.sampled_from(sorted(json.loads((package / file).read_text()))) | st.sampled_from(NAMES)
    changes = data.draw(st.dictionaries(named, st.sampled_from(HOSTILE), min_size=1, max_size=3))
    edited(package, changes, file=file)
    with suppress(PrivTuneError):
        load_bottom_package(package)


def test_a_tokenizer_that_panics_is_a_refusal(tmp_path):
    packed(saved(tiny_lm("llama"), tmp_path / "model"), "causal-lm", 1, tmp_path / "package")
    rigged = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}
    edited(tmp_path / "package", rigged, file="tokenizer.json")
    with pytest.raises(ArtifactCorrupt):
        load_bottom_package(tmp_path / "package")


def edited(folder, changes, *, file="config.json"):
    """The package as a hostile cloud sends it: a changed file and a manifest that fits."""
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(facts | changes))
    write_manifest(folder, **{name: value for name, value in manifest.items() if name != "files"})
