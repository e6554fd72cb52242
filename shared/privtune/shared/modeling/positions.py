"""How long a text a model takes, measured on a small copy: some tables keep rows for padding, no list says which."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from privtune.shared.modeling.architectures import tasks_of
from privtune.shared.modeling.hf_calls import SAFE, quiet
from privtune.shared.modeling.seeding import seeded
from privtune.shared.modeling.small_copy import kept_small, small_config

_MOST = 8  # rows that are not for a text


def max_positions(config: Any) -> int | None:
    """The longest text in tokens; None if the configuration sets no limit. RoBERTa's 514 rows take 512 tokens."""
    limit = getattr(config, "max_position_embeddings", None)
    return limit - kept_rows(config) if isinstance(limit, int) else None


def kept_rows(config: Any) -> int:
    """By how many tokens a small copy's longest text is shorter than its table; 0 for a copy that never runs."""
    if getattr(config, "rope_parameters", None):  # no table, and a copy keeps its length, on which scaling depends
        return 0
    factory = AutoModelForCausalLM if "causal-lm" in tasks_of(config.model_type) else AutoModelForSequenceClassification
    try:
        with quiet(), seeded("positions"), torch.no_grad():
            small = small_config(config)
            with kept_small():
                base = factory.from_config(small, dtype=torch.float32, **SAFE).base_model.eval()
            rows = small.max_position_embeddings
            return next((kept for kept in range(min(_MOST, rows)) if _runs(base, rows - kept)), 0)
    except Exception:  # whether such a model can be used at all is for the self-check to say
        return 0


def _runs(base: Any, length: int) -> bool:
    ids_BT = torch.full((1, length), 5)
    try:
        base(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
    except (IndexError, RuntimeError):  # a row beyond a table
        return False
    return True
