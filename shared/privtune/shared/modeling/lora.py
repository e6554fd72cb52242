"""Make a top trainable: LoRA through peft, or every weight of its own. The only module that imports peft."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from privtune.shared.at_rest import write_bytes
from privtune.shared.errors import ArtifactCorrupt, InvalidInput
from privtune.shared.job_spec import TuningSpec
from privtune.shared.modeling.adapter_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FULL_FACTS,
    FULL_WEIGHTS,
    exported_name,
)
from privtune.shared.modeling.hf_calls import without_hub_code
from privtune.shared.modeling.partition import Top
from privtune.shared.modeling.seeding import started_at
from privtune.shared.modeling.tensor_files import save_tensors
from privtune.shared.modeling.training_size import linear_layers
from privtune.shared.packages import require


def check_lora() -> None:
    """Raises `PackageMissing` where there is no peft."""
    require("LoRA on this machine needs (--tuning full does not)", ("peft",), "tail")


def attach_lora(top: Top, spec: TuningSpec, seed: int) -> None:
    """Add LoRA to linear layers of the top's blocks, in place; the initial adapter depends on `seed` alone.

    The shared base weights stay untouched, so tops of other jobs are not affected.
    Raises `InvalidInput` for a target that no linear layer is called, naming those there are; `PackageMissing`.
    """
    check_lora()
    with without_hub_code():  # peft imports bitsandbytes where that is installed, in part when it is first used
        from peft import LoraConfig, get_peft_model  # large; a device needs it only for a tail

    linear = linear_layers(top)
    leaves = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for target in spec.targets:
        if not any(name.endswith(f".{target}") for name in linear):
            raise InvalidInput(f"No linear layer is called '{target}'. This model has: {', '.join(leaves)}.")
    targets = list(spec.targets) or leaves
    chosen = [m for name, m in linear.items() if any(name.endswith(f".{target}") for target in targets)]
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        # By number instead of by full name: plain peft then finds exactly the same layers in the full model.
        layers_to_transform=[int(name.rsplit(".", 1)[-1]) for name in top.block_names],
        layers_pattern=top.block_names[0].split(".")[-2],
        fan_in_fan_out=isinstance(chosen[0], Conv1D),
        bias="none",
        base_model_name_or_path=str(top.config.name_or_path) or None,
    )
    with started_at(seed), warnings.catch_warnings(), without_hub_code():
        # peft reads a property that transformers 5.24 deprecates; no owner can do anything about that.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        get_peft_model(top.task, config)  # changes the tree in place; the wrapper is not needed
    top.__dict__["adapter_config"] = config


def train_fully(top: Top) -> None:
    """Make every weight of the top's blocks and final stage trainable, as copies: the base stays untouched.

    What the bottom needs as well (MPNet's relative position table) stays frozen.
    """
    for name in (*top.block_names, *top.final_names):
        for module in top.task.get_submodule(name).modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, key, nn.Parameter(parameter.detach().clone()))


def trainable_parameters(top: Top) -> list[nn.Parameter]:
    """What the optimiser trains, in a stable order."""
    return [parameter for parameter in top.parameters() if parameter.requires_grad]


def adapter_state(top: Top) -> dict[str, Tensor]:
    """Name -> value of everything trainable; the values are the live tensors, detached."""
    return {name: p.detach() for name, p in top.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_adapter_state(top: Top, state: Mapping[str, Tensor]) -> None:
    """Copy a saved state into the top. Raises `ArtifactCorrupt` when its names or shapes do not fit."""
    here = {name: p for name, p in top.named_parameters() if p.requires_grad}
    if here.keys() != state.keys() or any(here[name].shape != state[name].shape for name in here):
        raise ArtifactCorrupt("The saved adapter does not fit this model and tuning; start a new job.")
    for name, parameter in here.items():
        parameter.copy_(state[name])


def save_adapter(top: Top, folder: Path) -> None:
    """Write the tuned part under the full model's names. Raises OSError or safetensors' error on a full disk.

    LoRA: a PEFT folder. Full tuning: `tuned.safetensors` with the changed weights and `tuning.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.cpu().contiguous() for name, value in adapter_state(top).items()}
    config: Any = top.__dict__.get("adapter_config")
    if config is None:
        save_tensors(state, folder / FULL_WEIGHTS, metadata={"format": "pt"})
        facts = {"method": "full", "base_model_name_or_path": str(top.config.name_or_path), "cut": top.cut}
        write_bytes(folder / FULL_FACTS, json.dumps(facts, indent=1).encode())
        return
    named = {exported_name(name): value for name, value in state.items()}
    save_tensors(named, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    write_bytes(folder / ADAPTER_CONFIG, json.dumps(_without_defaults(config), indent=1).encode())


def _without_defaults(config: Any) -> dict[str, Any]:
    """What differs from a new configuration of its kind: peft refuses keys that came after its own version."""
    plain, kept = type(config)().to_dict(), ("peft_type", "r", "lora_alpha", "lora_dropout")
    told = {key: value for key, value in config.to_dict().items() if key in kept or value != plain[key]}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in told.items()}
