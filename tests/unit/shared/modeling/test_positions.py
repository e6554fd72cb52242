"""How long a text a model takes is measured, not read from a list of families."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from privtune.shared.modeling.positions import max_positions

ROWS = 40
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 33}


@pytest.mark.parametrize(
    ("kind", "pad", "kept"),
    [
        ("bert", 0, 0),
        ("roberta", 1, 2),
        ("roberta", 0, 1),
        ("mpnet", 1, 2),
        ("roberta-prelayernorm", 1, 2),
        ("data2vec-text", 1, 2),
        ("xlm-roberta-xl", 1, 2),
        ("esm", 1, 2),
        ("luke", 1, 2),
        ("opt", 1, 0),  # its table has the two rows in addition
        ("gpt2", 1, 0),
        ("llama", 1, 0),  # no table
    ],
)
def test_rows_kept_for_padding_take_no_text(kind, pad, kept):
    config = AutoConfig.for_model(kind, **SHAPE, max_position_embeddings=ROWS, pad_token_id=pad)
    longest = max_positions(config)
    assert longest == ROWS - kept
    model = AutoModelForSequenceClassification.from_config(config)
    assert model(input_ids=torch.full((1, longest), 5)).logits.isfinite().all()
    if kept:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 5))


def test_no_limit_and_a_model_without_a_copy():
    assert max_positions(AutoConfig.for_model("bloom")) is None
    assert max_positions(AutoConfig.for_model("perceiver", max_position_embeddings=ROWS)) == ROWS
