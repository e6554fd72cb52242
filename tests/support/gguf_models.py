"""Tiny models and tokenizers of the kinds that a GGUF file can hold."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from privtune.device.export.gguf_tokens import SPLITS
from tests.support.tiny_models import tiny_lm

TEXTS = ["the cat sat on 12 mats", "It's  2 spaces, isn't it?", "Zoë ate crêpes\nand 345 more — 😀", "the\tend"]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
RULES = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    **{
        name: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(rule), "isolated"), BYTES])
        for rule, name in SPLITS.items()
    },
}


def byte_level(rule: Any, normalizer: Any = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, learned from the sentences above."""
    inner = Tokenizer(models.BPE())
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.pre_tokenizer, inner.decoder = rule, decoders.ByteLevel()
    special = ["<|start|>", "<|end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>", clean_up=False
    )


def sentencepiece(lacking: int | None = None) -> PreTrainedTokenizerFast:
    """A BPE tokenizer over characters with the sign for a space, a start token, and bytes to fall back on."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256) if byte != lacking]
    inner.train_from_iterator(TEXTS[:2], trainers.BpeTrainer(vocab_size=320, special_tokens=special + fallback))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return made


def gguf_lm(kind: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Any:
    """A tiny decoder of a kind that GGUF knows, with room for the tokenizer."""
    settings = {"vocab_size": len(tokenizer) + 3, "sliding_window": None, "use_sliding_window": False}
    if kind == "qwen3":
        settings["head_dim"] = 128  # what transformers takes for granted when it reads such a file
    return tiny_lm(kind, **{**settings, **changes})


def logits(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """logits_BTV of a whole model."""
    with torch.no_grad():
        return model.eval()(input_ids=ids_BT).logits
