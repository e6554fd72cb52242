"""How a model's frozen blocks are kept: as they are, or smaller. Norms, biases and adapters stay float32.

    fp32   as the files have them
    bf16   half the memory; runs under autocast to bfloat16
    int8   a quarter: bitsandbytes' LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339)
    nf4    an eighth: bitsandbytes' 4-bit NormalFloat with one scale per 64 weights (QLoRA, Dettmers et al. 2023,
           arXiv 2305.14314)

What trains on them learns around their rounding; an adapter belongs to the weights all the same, and is exported for
the float32 ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from privtune.shared.errors import ModelUnsupported
from privtune.shared.modeling.hf_calls import without_hub_code
from privtune.shared.packages import require

Stored = Literal["fp32", "bf16", "int8", "nf4"]
BYTES: dict[Stored, float] = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}  # a weight, scales included


def check_stored(stored: Stored) -> None:
    """Raises `PackageMissing` where what reads such weights is not installed."""
    if stored in ("int8", "nf4"):
        require("models in 8 or 4 bits need", ("bitsandbytes",), "quantised")


@torch.no_grad()
def store_blocks(blocks: Iterable[nn.Module], stored: Stored, device: torch.device) -> None:
    """Keep the linear layers of these blocks in a form, in place, one after the other, and move the blocks to `device`.

    Raises `PackageMissing`, and `ModelUnsupported` for 8 or 4 bits of layers that are not `nn.Linear` (GPT-2's).
    """
    check_stored(stored)
    for block in blocks:
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear | Conv1D) and stored != "fp32":
                if stored == "bf16":
                    layer.weight.data = layer.weight.data.to(torch.bfloat16)
                elif isinstance(layer, nn.Linear):
                    block.set_submodule(name, _quantised(layer, stored, device))
                else:
                    raise ModelUnsupported("The linear layers of this model can't be kept in 8 or 4 bits; use bf16.")
        block.to(device)


def _quantised(layer: nn.Linear, stored: Stored, device: torch.device) -> nn.Module:
    with without_hub_code():
        import bitsandbytes as bnb  # large; only who asked for it has it

    shape = layer.in_features, layer.out_features
    made: Any
    if stored == "int8":
        made = bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    made.bias = layer.bias
    made.to(device)  # which is when it quantises
    if stored == "int8":
        made.init_8bit_state()  # else the first of the tops that share it would take its numbers away from the others
    layer_of: nn.Module = made
    return layer_of
