"""What splits exactly is found out by trying, and what does not is refused with what differs."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from privtune.shared.errors import ModelUnsupported, StorageFull
from privtune.shared.modeling import self_check
from privtune.shared.modeling.architectures import is_encoder, tasks_of
from privtune.shared.modeling.cache_folder import cache_folder
from privtune.shared.modeling.kv_cache import TopCache
from privtune.shared.modeling.load import check_config, load_task_model
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.self_check import split_fault, try_split
from privtune.shared.modeling.small_copy import kept_small, small_config
from tests.support.tiny_models import CONFIGS, ENCODERS, tiny_config

# Found by structure alone; each has something that a name, an order of registration or a return value once hid.
NEW = {
    "modernbert": {},
    "nomic_bert": {},
    "megatron-bert": {},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "rembert": {},
    "roformer": {},
    "eurobert": {"classifier_pooling": "bos"},
    "opt": {"word_embed_proj_dim": 512, "hidden_size": 1024, "do_layer_norm_before": False},
    "qwen3_moe": {},
    "mixtral": {"sliding_window": 8},
    "gpt_oss": {},
    "phimoe": {},
    "granite": {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},
    "bloom": {},
    "deepseek_v3": {},
    "falcon": {},
    "gpt_neox": {},
}
REFUSED = [
    ("albert", {}, "runs one block as several layers: bottom and top would share it"),
    ("deberta-v2", {"conv_kernel_size": 3}, "'conv' between its blocks"),
    ("eurobert", {"classifier_pooling": "late"}, "its head reads more than the first token"),
    ("modernbert", {"classifier_pooling": "mean"}, "its head reads more than the first token"),
    ("fnet", {}, "the whole model's own outputs depend on how far a text is padded"),
    ("gemma3", {}, "consists of several"),
]


@pytest.mark.parametrize("kind", NEW)
def test_models_that_no_list_names_split_exactly(kind):
    task = tasks_of(kind)[-1]  # a decoder's covers token by token
    assert split_fault(AutoConfig.for_model(kind, **NEW[kind]), task) is None


@pytest.mark.parametrize(("kind", "changes", "reason"), REFUSED)
def test_what_does_not_split_is_refused_with_what_differs(kind, changes, reason):
    with pytest.raises(ModelUnsupported, match=reason) as refused:
        check_config(AutoConfig.for_model(kind, **changes), "classification", 2, "some/model")
    assert str(refused.value).startswith(f"'some/model' (type '{kind}') can't be split for classification: ")
    assert "\n" not in str(refused.value)


def test_a_cache_of_more_than_keys_and_values_is_refused():
    config = AutoConfig.for_model("lfm2", num_hidden_layers=2, layer_types=["conv", "full_attention"])
    assert "more than keys and values of earlier tokens (LinearAttentionLayer)" in split_fault(config, "causal-lm")


def test_a_configuration_does_not_choose_the_code_of_attention():
    config = tiny_config("bert", attn_implementation="somebody/kernel")
    assert config._attn_implementation == "somebody/kernel"
    assert check_config(config, "classification", 2, "some/model")._attn_implementation is None


def test_a_mixture_loads_and_splits(tmp_path):
    config = small_config(AutoConfig.for_model("qwen3_moe", initializer_range=0.2))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    partition = Partition(load_task_model(str(tmp_path), "causal-lm"))
    ids_BT = torch.tensor([[5, 6, 7]])
    mask_BT = torch.ones_like(ids_BT)
    split_NV = partition.head()(partition.top(2)(partition.bottom(2)(ids_BT, mask_BT), mask_BT, torch.arange(3)))
    torch.testing.assert_close(split_NV, partition.model(input_ids=ids_BT).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda out_ND: out_ND * 1.001, "outputs differ by .e-0[45] at cut 0 with a tail of 3"),
        (lambda out_ND: 2 * out_ND - out_ND.detach(), "gradients differ by 1e[+]00 at cut 1"),
    ],
)
def test_a_top_that_is_a_little_wrong_is_found(wrong, found, monkeypatch):
    class Wrong(Partition):
        def top(self, cut, tail=0):
            top = super().top(cut, tail)
            if cut == 1:
                top.register_forward_hook(lambda _, __, out_ND: wrong(out_ND))
            return top

    monkeypatch.setattr(self_check, "Partition", Wrong)
    assert re.match(found, try_split(small_config(tiny_config("bert")), "classification"))


def test_a_cache_that_forgets_is_found(monkeypatch):
    class Forgetful(TopCache):
        def extend(self, h_TD):
            self.__init__(self.top)
            return super().extend(h_TD)

        def __init__(self, top):
            super().__init__(top)
            self.top = top

    monkeypatch.setattr(self_check, "TopCache", Forgetful)
    assert "token by token differ" in try_split(small_config(tiny_config("llama")), "causal-lm")


def test_a_copy_that_takes_too_long_is_refused_and_other_threads_are_left_alone(monkeypatch):
    took: list[torch.Tensor] = []

    def meanwhile(_):
        other = threading.Thread(target=lambda: took.append(torch.nn.Linear(1, 1)(torch.ones(1))))
        other.start()
        other.join()

    monkeypatch.setattr(self_check, "check_cache", meanwhile)
    monkeypatch.setattr(self_check, "LIMIT_S", 0.0)
    fault = try_split(small_config(tiny_config("llama")), "causal-lm")
    assert fault == "a small copy of it takes more than 0 s to run, so it can't be tried."
    assert len(took) == 1


def test_sizes_of_a_state_space_are_small_as_well():
    """With its own chunks of 256 tokens Falcon-H1's copy took minutes."""
    assert small_config(AutoConfig.for_model("falcon_h1")).mamba_chunk_size == 8


def test_a_verdict_is_kept_by_configuration_task_and_version(tmp_path, monkeypatch):
    tried = []

    def count(small, task):
        tried.append((small.hidden_act, task))
        return "no" if small.hidden_act == "relu" else None

    monkeypatch.setenv("PRIVTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(self_check, "try_split", count)
    for _ in range(2):
        assert split_fault(tiny_config("llama"), "causal-lm") is None
        assert split_fault(tiny_config("llama", num_hidden_layers=9), "causal-lm") is None  # the same small copy
        assert split_fault(tiny_config("llama", hidden_act="relu"), "causal-lm") == "no"
        assert split_fault(tiny_config("llama"), "classification") is None
    assert tried == [("silu", "causal-lm"), ("relu", "causal-lm"), ("silu", "classification")]
    monkeypatch.setattr(self_check, "VERSIONS", ("5.99", "3.0"))
    split_fault(tiny_config("llama"), "causal-lm")
    assert len(tried) == 4
    for file in (tmp_path / "split-checks").iterdir():
        file.write_text("{")
    split_fault(tiny_config("llama"), "causal-lm")
    assert len(tried) == 5


def test_a_cache_that_can_not_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRIVTUNE_CACHE", str(tmp_path / "file"))
    assert split_fault(tiny_config("bert"), "classification") is None


def test_a_user_without_a_home_folder_needs_no_cache_of_verdicts(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("PRIVTUNE_CACHE")
    assert split_fault(tiny_config("bert"), "classification") is None
    with pytest.raises(StorageFull, match="set PRIVTUNE_CACHE"):
        cache_folder()
    monkeypatch.setenv("PRIVTUNE_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_small_copy_keeps_class_kinds_of_layers_and_flags(kind):
    config, small = tiny_config(kind, hidden_size=128, num_hidden_layers=3), small_config(tiny_config(kind))
    assert type(small) is type(config)
    assert (small.hidden_size, small.vocab_size, small.num_hidden_layers) == (64, 64, 4)
    assert set(getattr(small, "layer_types", None) or []) == set(getattr(config, "layer_types", None) or [])
    kept = ("hidden_act", "rms_norm_eps", "layer_norm_eps", "rope_parameters", "tie_word_embeddings", "pos_att_type")
    assert all(getattr(small, name, None) == getattr(config, name, None) for name in kept)


def test_a_size_that_is_not_known_does_not_take_memory():
    with pytest.raises(ModelUnsupported, match="no small copy"), kept_small():
        torch.nn.Embedding(10_000_000, 3)


def test_tasks_are_those_that_transformers_has_classes_for():
    assert tasks_of("bert") == tasks_of("modernbert") == ("classification",)
    assert tasks_of("llama") == ("classification", "causal-lm")
    assert tasks_of("granite") == ("causal-lm",)
    assert tasks_of("t5") == tasks_of("bart") == tasks_of("no-such-type") == ()
    assert {kind for kind in CONFIGS if is_encoder(kind)} == set(ENCODERS)
