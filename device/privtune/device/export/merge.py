"""Merges an adapter into the weights of its base: W + scale * B A, without peft.

It computes what peft's `merge_and_unload` would (Hu et al. 2021, arXiv 2106.09685; rank-stabilised scale: Kalajdzievski
2023, arXiv 2312.03732), for adapters that PrivTune trains. Any other setting of an adapter's configuration is refused
by name, never ignored.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from privtune.shared.errors import ArtifactCorrupt, ModelUnsupported, is_failure
from privtune.shared.modeling.adapter_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FULL_WEIGHTS,
    PEFT_PREFIX,
    read_config,
)
from privtune.shared.modeling.tensor_files import load_tensors

_A, _B = ".lora_A.weight", ".lora_B.weight"
_USED = {"peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights", "bias"}
# Settings about training, names or loading only. `fan_in_fan_out` says what the layer's own class says.
_NO_MATTER = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}


@torch.no_grad()
def merge_into(model: Any, folder: Path) -> None:
    """Change the whole task model, head included, in place: it then computes what base and adapter compute together.

    Args:
        model: the adapter's own base, in fp32.
        folder: an adapter by LoRA or full tuning, as `add_head_to_adapter` leaves it.

    Raises:
        ModelUnsupported: the adapter can't be merged here; names what is not supported.
        ArtifactCorrupt: the tensors belong to another model.
    """
    if (folder / FULL_WEIGHTS).exists():
        for name, value in _tensors(folder / FULL_WEIGHTS).items():
            _parameter(model, name, value.shape).copy_(value)
        return
    scale, rank = _scale(read_config(folder / ADAPTER_CONFIG))
    tensors = {name.removeprefix(PEFT_PREFIX): value for name, value in _tensors(folder / ADAPTER_WEIGHTS).items()}
    for name in tensors:
        if "lora_" in name and not name.endswith((_A, _B)):
            raise ModelUnsupported(f"The adapter holds {name}, which can't be merged here; merge it with peft.")
    for name in [name for name in tensors if name.endswith(_A)]:
        layer = name.removesuffix(_A)
        a_RI, b_OR = tensors.pop(name).float(), tensors.pop(layer + _B, torch.empty(0)).float()
        if a_RI.dim() != 2 or b_OR.dim() != 2 or not len(a_RI) == b_OR.shape[1] == rank:
            raise ArtifactCorrupt(f"{layer}: the adapter's matrices are not of rank {rank}; fetch the adapter again")
        delta_OI = scale * (b_OR @ a_RI)
        transposed = isinstance(_module(model, layer), Conv1D)  # GPT-2 keeps (in, out)
        delta = delta_OI.T if transposed else delta_OI
        _parameter(model, f"{layer}.weight", delta.shape).add_(delta)
    for name, value in tensors.items():  # the head
        _parameter(model, name, value.shape).copy_(value)


def _scale(config: dict[str, Any]) -> tuple[float, int]:
    """(scale, rank) of a LoRA configuration. Raises ModelUnsupported for any setting that is not understood."""
    if config.get("peft_type") != "LORA":
        raise ModelUnsupported(f"An adapter of type {config.get('peft_type')} can't be merged here, only LORA.")
    strange = sorted(key for key in config.keys() - _USED - _NO_MATTER if config[key])
    if config.get("bias", "none") != "none":
        strange.append("bias")
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        strange.append("init_lora_weights")  # pissa and similar ones change the base's weights too
    if strange:
        raise ModelUnsupported(
            f"The adapter sets {', '.join(strange)}, which can't be merged here: "
            "export it with --format peft and use peft's merge_and_unload."
        )
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), rank


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_tensors(path)
    except BaseException as error:  # safetensors raises its own, unexported kinds, and may panic
        if not is_failure(error):
            raise
        raise ArtifactCorrupt(f"{path.name} can't be read as safetensors; fetch the adapter again") from error
    return tensors


def _module(model: Any, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ArtifactCorrupt(f"The adapter changes {name}, which this base does not have.") from None


def _parameter(model: Any, name: str, shape: torch.Size) -> Tensor:
    layer, _, leaf = name.rpartition(".")
    parameter = getattr(_module(model, layer), leaf, None)
    if not isinstance(parameter, Tensor) or parameter.shape != shape:
        here = tuple(parameter.shape) if isinstance(parameter, Tensor) else "missing"
        raise ArtifactCorrupt(f"The adapter's {name} is {tuple(shape)}; in this base it is {here}.")
    return parameter
