"""A tiny real bottom (BERT, random weights) and what the mechanisms may know of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.randomness import UNSAFE_SEED_ENV, NoiseSource, noise_source
from privtune.shared.modeling.partition import Bottom, Partition

VOCABULARY = 120
HIDDEN = 32
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused0]", *(f"word{i}" for i in range(VOCABULARY - 5))]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bottom() -> Bottom:
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


@pytest.fixture(scope="session")
def context(bottom: Bottom) -> NoiseContext:
    return tiny_context(bottom)


def tiny_context(bottom: Bottom, **changes: Any) -> NoiseContext:
    """What mechanisms may know of the tiny bottom; `changes` replace its fields."""
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


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> NoiseSource:
    monkeypatch.setenv(UNSAFE_SEED_ENV, "1")
    return noise_source(unsafe_seed=7)
