"""A GGUF file of a merged language model, laid out as by llama.cpp's converter, written by the `gguf` library.

Only architectures whose tensors and settings are written in full and read back unchanged are supported
(tests/unit/device/export/test_gguf.py); a setting that the format would lose is refused by name. The tokenizer is
copied from the base's GGUF file if the base was loaded from one; otherwise `gguf_tokens` writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtune.shared.errors import ModelUnsupported, NonFinite
from privtune.shared.packages import require

# model_type -> (architecture in GGUF, settings that must have this value because the format has no place for others)
_PLAIN = {"hidden_act": ("silu",)}
ARCHITECTURES: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "llama": ("llama", {**_PLAIN, "attention_bias": (False,), "mlp_bias": (False,)}),
    "mistral": ("llama", {**_PLAIN, "sliding_window": (None,)}),
    "qwen2": ("qwen2", {**_PLAIN, "use_sliding_window": (False,)}),
    "qwen3": ("qwen3", {**_PLAIN, "use_sliding_window": (False,), "attention_bias": (False,)}),
}


def check_gguf(config: Any) -> None:
    """Raises PackageMissing without the library, ModelUnsupported for a model that a GGUF file can't hold."""
    require("--format gguf needs", ("gguf",), "gguf")
    if config.model_type not in ARCHITECTURES:
        raise ModelUnsupported(
            f"A model of type {config.model_type!r} can't be written as GGUF here; possible: "
            f"{', '.join(ARCHITECTURES)}. Use --format merged."
        )
    for name, allowed in ARCHITECTURES[config.model_type][1].items():
        if getattr(config, name, allowed[0]) not in allowed:
            raise ModelUnsupported(
                f"A GGUF file has no place for {name} = {getattr(config, name)}; use --format merged."
            )
    if _rope(config).get("rope_type", "default") != "default":
        raise ModelUnsupported(
            f"Rope scaling of type {_rope(config)['rope_type']} can't be written as GGUF here; use --format merged."
        )


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    dtype: str,
    *,
    name: str,
    source: Path | None,
    template: str | None = None,
    turn_end: int | None = None,
) -> None:
    """Write the fp32 model as one file; matrices in `dtype` (fp32, fp16 or bf16), vectors always in fp32.

    name: what the model is called in the file. source: the GGUF file that the base came from, if it did.
    template: the chat template of the training; None keeps the tokenizer's. turn_end: the token that ends the
    assistant's turn, if one does.
    Raises what `check_gguf` raises; NonFinite when a weight has no value in `dtype`; OSError.
    """
    import gguf

    from privtune.device.export.gguf_tokens import copy_tokenizer, write_tokenizer

    check_gguf(model.config)
    config, arch = model.config, ARCHITECTURES[model.config.model_type][0]
    writer = gguf.GGUFWriter(path, arch)
    try:
        _write_settings(writer, config, name, dtype)
        if source is not None:
            copy_tokenizer(writer, source, template, turn_end)
        else:
            write_tokenizer(writer, tokenizer, config.vocab_size)
            if turn_end is not None:
                writer.add_eot_token_id(turn_end)
        number = {known: key for key, known in gguf.MODEL_ARCH_NAMES.items()}[arch]
        names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
        for key, value in model.named_parameters():  # a tied lm_head appears once, and is not written
            target = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise ModelUnsupported(f"GGUF has no name for the tensor {key}; use --format merged.")
            data, kind = _numbers(_rotated(key, value.detach().float(), config, arch), dtype, key)
            writer.add_tensor(target, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _write_settings(writer: Any, config: Any, name: str, dtype: str) -> None:
    import gguf

    kind = {"fp32": "ALL_F32", "fp16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}[dtype]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[kind])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)


def _rope(config: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = config.rope_parameters
    return parameters


def _rotated(key: str, value: Tensor, config: Any, arch: str) -> Tensor:
    """Rows of queries and keys in GGUF's order for `llama`: the two halves of each head interleaved."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
    if arch != "llama" or heads is None:
        return value
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _numbers(value: Tensor, dtype: str, key: str) -> tuple[NDArray[Any], Any]:
    """(array, GGUF type) of one tensor."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    array = value.contiguous().numpy()
    if value.dim() == 1 or dtype == "fp32":
        return array, kinds.F32
    if dtype == "bf16":
        return gguf.quants.quantize(array, kinds.BF16), kinds.BF16
    if value.abs().max() > torch.finfo(torch.float16).max:
        raise NonFinite(f"{key} has values that fp16 can't hold; use --dtype bf16 or fp32.")
    return array.astype(np.float16), kinds.F16
