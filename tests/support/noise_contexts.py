"""Bottoms of tiny models, and what mechanisms may know of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from privtune.device.noise.context import NoiseContext
from privtune.shared.modeling.partition import Bottom, Partition
from tests.support.tiny_models import WIDTH, tiny_tokenizer

VOCABULARY = 120
HIDDEN = 32
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused0]", *(f"word{i}" for i in range(VOCABULARY - 5))]


def tiny_bottom() -> Bottom:
    """The first block of a BERT with random weights and `WORDS` as its vocabulary."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return Partition(BertForSequenceClassification(config).eval()).bottom(1)


def tiny_context(bottom: Bottom, **changes: Any) -> NoiseContext:
    """What mechanisms may know of `tiny_bottom`; `changes` replace its fields."""
    facts: dict[str, Any] = {
        "bottom": bottom,
        "hidden_size": HIDDEN,
        "cut": 1,
        "tokens": WORDS,
        "special_ids": frozenset({0, 2, 3}),
        "prefix": (2,),
        "suffix": (3,),
    }
    return NoiseContext(**{**facts, **changes})


def model_context(bottom: Bottom, *, cut: int = 1, longest: int | None = 40) -> NoiseContext:
    """What mechanisms may know of the bottom of one of `tests.support.tiny_models`."""
    return NoiseContext.for_model(bottom, tiny_tokenizer(), hidden_size=WIDTH, cut=cut, longest=longest)
