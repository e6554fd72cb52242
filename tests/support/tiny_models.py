"""Tiny random models of every supported architecture, and a word-level tokenizer: no files, no hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

VOCAB, WIDTH, LAYERS = 64, 32, 3

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,  # large enough for attention and norms to matter
}
_ROPE: dict[str, Any] = {
    **_COMMON,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "attention_dropout": 0.0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_COMMON, "type_vocab_size": 2},
    "roberta": {**_COMMON, "type_vocab_size": 1},
    "distilbert": {
        "vocab_size": VOCAB,
        "dim": WIDTH,
        "n_layers": LAYERS,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 48,
        "pad_token_id": 1,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
        "initializer_range": 0.2,
    },
    "mpnet": _COMMON,
    "electra": {**_COMMON, "embedding_size": 16},
    "xlm-roberta": {**_COMMON, "type_vocab_size": 1},
    "camembert": {**_COMMON, "type_vocab_size": 1},
    "deberta-v2": {  # the settings of DeBERTa-v3
        **_COMMON,
        "type_vocab_size": 0,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pooler_dropout": 0.0,
    },
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 48,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 1,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.2,
    },
    "llama": {**_ROPE, "tie_word_embeddings": True},
    "qwen2": {**_ROPE, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": _ROPE,
    "mistral": {**_ROPE, "sliding_window": 4},
    "gemma": _ROPE,
    "gemma2": {**_ROPE, "sliding_window": 4, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "gemma3_text": {
        **_ROPE,
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi": {**_ROPE, "resid_pdrop": 0.0, "partial_rotary_factor": 0.5},
    "phi3": {**_ROPE, "resid_pdrop": 0.0, "sliding_window": 4},
    "olmo2": _ROPE,
    "starcoder2": {**_ROPE, "residual_dropout": 0.0, "sliding_window": 4},
}
ENCODERS = ("bert", "roberta", "distilbert", "mpnet", "electra", "xlm-roberta", "camembert", "deberta-v2")
DECODERS = tuple(kind for kind in CONFIGS if kind not in ENCODERS)


def tiny_config(kind: str, **changes: Any) -> Any:
    """A configuration of architecture `kind`, 3 layers of width 32."""
    return AutoConfig.for_model(kind, **{**CONFIGS[kind], **changes})


def tiny_classifier(kind: str, *, num_labels: int = 3, seed: int = 0, **changes: Any) -> Any:
    """A random `...ForSequenceClassification`, fp32, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = tiny_config(kind, num_labels=num_labels, **changes)
        return AutoModelForSequenceClassification.from_config(config).eval()


def tiny_lm(kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random `...ForCausalLM`, fp32, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).eval()


def tiny_batch(lengths: tuple[int, ...] = (7, 1, 4), *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_BT (padded on the right with id 1) and mask_BT."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    mask_BT = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    ids_BT = torch.randint(4, VOCAB, mask_BT.shape, generator=generator)
    return torch.where(mask_BT.bool(), ids_BT, 1), mask_BT


def tiny_tokenizer() -> Any:
    """A fast word-level tokenizer with the ids that the tiny models expect."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(VOCAB - 4))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=48,
    )


def save_model(folder: Path, kind: str, task: str, **changes: Any) -> Path:
    """A tiny random model with its tokenizer in a local folder."""
    model = tiny_classifier(kind, **changes) if task == "classification" else tiny_lm(kind, **changes)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
