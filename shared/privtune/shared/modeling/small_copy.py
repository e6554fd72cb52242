"""A small copy of a configuration: the same class and flags, few layers, small widths. Cheap to build and to run."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PretrainedConfig

from privtune.shared.errors import ModelUnsupported

VOCABULARY, LABELS = 64, 3
_MOST = 20_000_000  # parameters: what a size that is not known here may add
_LAYERS, _WIDTH, _HEADS, _WINDOW = 4, 64, 4, 4

_SIZES = {  # at most, where the configuration has a number
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_ff", "ffn_hidden_size", "dim_ff"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size_mlp", "block_ff_dim", "shared_intermediate_size"), 96),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("num_dense_layers", "moe_layer_start_index", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("qk_head_dim",), 32),
    **dict.fromkeys(("sliding_window", "attention_window", "attention_chunk_size", "local_attention"), _WINDOW),
    **dict.fromkeys(("window_size", "position_buckets", "rotary_dim"), 8),
    **dict.fromkeys(("mamba_chunk_size", "mamba_d_state"), 8),
    **dict.fromkeys(("vocab_size_per_layer_input", "entity_vocab_size"), VOCABULARY),
}
# May differ from the width.
_NARROW = ("embedding_size", "input_embedding_size", "word_embed_proj_dim", "d_embed", "pooler_hidden_size")


def small_config(config: Any) -> Any:
    """A copy with every kind of layer, 4 heads of 16 and 64 tokens; all that is not a size stays as it is.

    Raises `ModelUnsupported` for a model made of several.
    """
    if any(isinstance(value, PretrainedConfig) for value in vars(config).values()):
        raise ModelUnsupported("this model consists of several; its text model alone may be split.")
    small = copy.deepcopy(config)
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    groups, head = getattr(config, "num_key_value_heads", None), getattr(config, "head_dim", None)
    _shorten(small, getattr(config, "num_hidden_layers", 0))
    for name, value in {"vocab_size": VOCABULARY, "hidden_size": _WIDTH, "num_attention_heads": _HEADS}.items():
        _put(small, name, value)
    if groups is not None:
        _put(small, "num_key_value_heads", 1 if groups == 1 else _HEADS if groups == heads else _HEADS // 2)
    if isinstance(head, int):
        _put(small, "head_dim", _WIDTH // _HEADS * (1 if head * (heads or 1) == width else 2))
    if head is not None and head == getattr(config, "qk_rope_head_dim", None):  # DeepSeek's rotary part alone
        _put(small, "head_dim", _SIZES["qk_rope_head_dim"])
    for name in _NARROW:
        _put(small, name, _WIDTH if getattr(config, name, None) == width else _WIDTH // 2)
    for name, limit in _SIZES.items():
        size = getattr(config, name, None)
        if isinstance(size, int) and size > limit:
            _put(small, name, limit)
    _shrink_positions(small)
    _move_tokens(small)
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    small.num_labels, small._name_or_path = LABELS, ""
    return small


@contextlib.contextmanager
def kept_small() -> Iterator[None]:
    """While a small copy is built: raises `ModelUnsupported` before it takes much memory."""
    count, thread = 0, threading.get_ident()

    def add(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        if parameter is not None and threading.get_ident() == thread:
            count += parameter.numel()
            if count > _MOST:
                raise ModelUnsupported("no small copy of this model can be made, so it can't be tried.")

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _put(small: Any, name: str, value: Any) -> None:
    if isinstance(getattr(small, name, None), int):
        with contextlib.suppress(AttributeError):  # a property that follows from others
            setattr(small, name, value)


def _shorten(small: Any, layers: int) -> None:
    """Keep one layer of each kind, in turn: lists with an entry per layer say which kinds there are."""
    lists = {k: v for k, v in vars(small).items() if isinstance(v, list) and len(v) == layers and layers > 1}
    lists = {k: v for k, v in lists.items() if layers <= _LAYERS or len({*map(str, v)}) < layers}  # not of indices
    kinds = list(dict.fromkeys(zip(*[map(str, v) for v in lists.values()], strict=True))) if lists else []
    at = [next(i for i in range(layers) if tuple(str(v[i]) for v in lists.values()) == kind) for kind in kinds] or [0]
    count = max(_LAYERS, len(at))
    for name, value in lists.items():
        setattr(small, name, [value[at[i % len(at)]] for i in range(count)])
    _put(small, "num_hidden_layers", count)
    if getattr(small, "num_hidden_groups", None) == layers:  # ALBERT without shared blocks
        small.num_hidden_groups = count


def _shrink_positions(small: Any) -> None:
    rope = getattr(small, "rope_parameters", None)
    if not rope:  # with it there is no table, and scaling depends on the length
        if getattr(small, "max_position_embeddings", 0) and small.max_position_embeddings > 64:
            _put(small, "max_position_embeddings", 64)
        return
    head = getattr(small, "head_dim", None) or _WIDTH // _HEADS
    for one in [rope, *(v for v in rope.values() if isinstance(v, dict))]:
        pairs = int(head * one.get("partial_rotary_factor", getattr(small, "partial_rotary_factor", None) or 1.0)) // 2
        for name in ("short_factor", "long_factor"):
            if isinstance(one.get(name), list):
                one[name] = one[name][:pairs]


def _move_tokens(small: Any) -> None:
    """Special tokens that the small vocabulary lacks move to its first ids."""
    for name, value in list(vars(small).items()):
        if not name.endswith("token_id") or value is None:
            continue
        new = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}.get(name, 4)
        if isinstance(value, list):
            setattr(small, name, [new])
        elif isinstance(value, int) and not 0 <= value < 5:
            setattr(small, name, new)
    if getattr(small, "pad_token_id", None) is None:
        small.pad_token_id = 1
