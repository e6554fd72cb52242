"""GGUF files are read back by transformers' own reader: the same logits and the same tokens, or a refusal by name."""

from __future__ import annotations

import pytest
import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from privtune.device.export.gguf_file import ARCHITECTURES, check_gguf, write_gguf
from privtune.shared.errors import ModelUnsupported, NonFinite
from tests.support.gguf_models import BYTES, RULES, TEXTS, byte_level, gguf_lm, logits, sentencepiece
from tests.support.tiny_models import DECODERS, tiny_lm, tiny_tokenizer


def written(folder, model, tokenizer, dtype="fp32"):
    write_gguf(folder / "model.gguf", model, tokenizer, dtype, name="tiny", source=None)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_read_back_it_gives_the_same_logits(kind, dtype, tmp_path):
    tokenizer = byte_level(RULES["gpt-2"])
    model = gguf_lm(kind, tokenizer, tie_word_embeddings=kind == "llama")
    again = written(tmp_path, model, tokenizer, dtype)
    ids_BT = torch.arange(3, 43).reshape(2, 20)
    tolerance = {"fp32": 1e-5, "fp16": 2e-2, "bf16": 2e-1}[dtype]
    torch.testing.assert_close(logits(again, ids_BT), logits(model, ids_BT), atol=tolerance, rtol=tolerance)
    sizes = [p.numel() for p in model.parameters()]
    assert (tmp_path / "model.gguf").stat().st_size > sum(sizes) * (4 if dtype == "fp32" else 2)
    if dtype != "fp32":
        assert (tmp_path / "model.gguf").stat().st_size < sum(sizes) * 3 + 100_000


@pytest.mark.parametrize("rule", RULES)
def test_a_byte_level_tokenizer_reads_the_same_tokens(rule, tmp_path):
    tokenizer = byte_level(RULES[rule])
    written(tmp_path, gguf_lm("llama", tokenizer), tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in [*TEXTS, "<|start|>the cat<|end|>"]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<|start|>", "<|end|>", "<|pad|>")


def test_a_sentencepiece_tokenizer_reads_the_same_tokens(tmp_path):
    tokenizer = sentencepiece()
    written(tmp_path, gguf_lm("llama", tokenizer), tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert tokenizer(TEXTS[0])["input_ids"][0] == 1
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template


def test_the_tokenizer_of_a_gguf_base_is_copied(tmp_path):
    from gguf import GGUFReader

    tokenizer = sentencepiece()
    model = gguf_lm("llama", tokenizer)
    write_gguf(tmp_path / "first.gguf", model, tokenizer, "fp32", name="tiny", source=None)
    write_gguf(tmp_path / "second.gguf", model, None, "fp16", name="tiny", source=tmp_path / "first.gguf")

    def fields(name):
        found = GGUFReader(tmp_path / name).fields
        return {key: (field.types, field.contents()) for key, field in found.items() if key.startswith("tokenizer.")}

    assert len(fields("first.gguf")) > 8
    assert fields("first.gguf") == fields("second.gguf")


def test_digits_one_by_one_are_named_smollm(tmp_path):
    from gguf import GGUFReader

    tokenizer = byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), RULES["gpt-2"]]))
    written(tmp_path, gguf_lm("llama", tokenizer), tokenizer)
    assert GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.pre"].contents() == "smollm"


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("mistral", {"sliding_window": 4}, "sliding_window"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "linear"),
        *[(kind, {}, "possible: llama, mistral, qwen2, qwen3") for kind in sorted(set(DECODERS) - set(ARCHITECTURES))],
    ],
)
def test_what_the_format_would_lose_is_refused_by_name(kind, changes, named):
    settings = {"sliding_window": None, "use_sliding_window": False} if kind in ARCHITECTURES else {}
    with pytest.raises(ModelUnsupported, match=named):
        check_gguf(tiny_lm(kind, **{**settings, **changes}).config)


@pytest.mark.parametrize(
    ("tokenizer", "named"),
    [
        (tiny_tokenizer(), "WordLevel"),
        (byte_level(pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), BYTES])), "splits text"),
        (byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "space first"),
        (sentencepiece(lacking=10), "single bytes"),
        (byte_level(RULES["gpt-2"], normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])), "Lowercase"),
    ],
)
def test_a_tokenizer_without_a_name_is_refused(tokenizer, named, tmp_path):
    with pytest.raises(ModelUnsupported, match=named):
        written(tmp_path, gguf_lm("llama", tokenizer), tokenizer)


def test_a_weight_too_large_for_half_precision(tmp_path):
    tokenizer = byte_level(RULES["gpt-2"])
    model = gguf_lm("llama", tokenizer)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(NonFinite, match=r"layers\.1\.mlp\.up_proj.*bf16"):
        written(tmp_path, model, tokenizer, "fp16")
