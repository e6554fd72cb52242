"""The model families that can be split, by transformers' `model_type`. Free of torch."""

from __future__ import annotations

ENCODERS = ("bert", "roberta", "distilbert", "mpnet", "electra", "xlm-roberta", "camembert", "deberta-v2")
DECODERS = (
    *("gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
    *("olmo2", "starcoder2"),
)
SUPPORTED = ENCODERS + DECODERS
