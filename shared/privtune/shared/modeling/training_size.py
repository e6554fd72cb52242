"""What training takes, counted from a model's structure: on the meta device as well, so without its weights.

The cloud bounds its jobs by these figures, and a device predicts from them what a job will take there.
"""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from privtune.shared.job_spec import TuningSpec
from privtune.shared.modeling.partition import Top

FLOAT = 4  # bytes: weights, gradients and optimiser are float32
_MIB = 1 << 20
_VECTORS = 40  # of a block that the graph of a pass keeps for each position
_VECTORS_RECOMPUTED = 2


def linear_layers(top: Top) -> dict[str, nn.Module]:
    """The linear layers of a top's blocks by name: those that LoRA can adapt."""
    found: dict[str, nn.Module] = {}
    for block in top.block_names:
        for name, module in top.task.get_submodule(block).named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                found[f"{block}.{name}"] = module
    return found


def trained_weights(top: Top, spec: TuningSpec) -> int:
    """How many weights of a top train, before it is made trainable."""
    if spec.method == "full":
        names = (*top.block_names, *top.final_names)
        return sum(weight.numel() for name in names for weight in top.task.get_submodule(name).parameters())
    total = 0
    for name, module in linear_layers(top).items():
        if not spec.targets or any(name.endswith(f".{target}") for target in spec.targets):
            total += spec.rank * sum(module.get_parameter("weight").shape)
    return total


def weight_bytes(trained: int) -> int:
    """What trained weights take: as they are, their gradient and two moments of the optimiser."""
    return _MIB + 4 * FLOAT * trained


def graph_bytes(positions: int, width: int, blocks: int, *, recomputed: bool) -> int:
    """At most what the graph of one forward pass over `positions`, padding included, keeps.

    Measured in vectors of a block: up to 28 for BERT and 38 for Llama with LoRA, 1.4 when recomputed.
    """
    return FLOAT * positions * width * (1 + blocks * (_VECTORS_RECOMPUTED if recomputed else _VECTORS))
