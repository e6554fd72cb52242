"""One side's training state on disk: parameters, optimiser, schedule and step, whole or not at all.

Both sides write checkpoints after the same optimiser steps, and a resume starts from the newest step that both have.
Data order, dropout and noise need no state: they are functions of (seed, step) or stored releases.
No pickle: tensors are safetensors, everything else is JSON. A folder without a manifest does not count, and one whose
hash does not match is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from privtune.shared.errors import ArtifactCorrupt, StorageFull
from privtune.shared.files import replacing_folder
from privtune.shared.manifest import sha256_file

_MANIFEST = "manifest.json"
_TENSORS = "state.safetensors"
_KEPT = 2  # newest checkpoints


def save_checkpoint(
    root: Path,
    step: int,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Write the state after `step` applied steps under `root`; only the newest two checkpoints are kept.

    Raises `StorageFull` when it can't be written; earlier checkpoints then stay as they were.
    """
    try:
        with replacing_folder(_folder(root, step)) as scratch:
            _write(scratch, step, parameters, optimizer, scheduler)
    except OSError as error:
        raise StorageFull(f"a checkpoint can't be written under {root.name}: {error.strerror}") from error
    for old in checkpoint_steps(root)[:-_KEPT]:
        shutil.rmtree(_folder(root, old), ignore_errors=True)


def checkpoint_steps(root: Path) -> list[int]:
    """Steps of the complete checkpoints under `root`, oldest first."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in root.glob(f"step-*/{_MANIFEST}"))


def drop_after(root: Path, step: int) -> None:
    """Drop checkpoints newer than `step`: the run continues from there and writes them again."""
    for newer in checkpoint_steps(root):
        if newer > step:
            shutil.rmtree(_folder(root, newer), ignore_errors=True)


def load_parameters(root: Path, step: int) -> dict[str, torch.Tensor]:
    """The parameters of a checkpoint, which suffice for inference. Raises `ArtifactCorrupt`."""
    return _tensors(root, step, "param.")


def load_checkpoint(
    root: Path,
    step: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> dict[str, torch.Tensor]:
    """Restore optimiser and schedule in place; returns the parameters. Raises `ArtifactCorrupt`."""
    parameters = _tensors(root, step, "param.")
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _tensors(root, step, "optim.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    manifest = _manifest(root, step)
    optimizer.load_state_dict({"state": state, "param_groups": manifest["param_groups"]})
    scheduler.load_state_dict(manifest["scheduler"])
    return parameters


def _write(
    folder: Path,
    step: int,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    tensors = {f"param.{name}": value.detach().cpu().contiguous() for name, value in parameters.items()}
    optim_state: dict[str, Any] = optimizer.state_dict()
    for index, state in optim_state["state"].items():
        for key, value in state.items():
            tensors[f"optim.{index}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(tensors, folder / _TENSORS)
    schedule = {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}
    manifest = {
        "step": step,
        "sha256": sha256_file(folder / _TENSORS),
        "param_groups": optim_state["param_groups"],
        "scheduler": {**schedule, "lr_lambdas": [None] * len(optim_state["param_groups"])},
    }
    with (folder / _MANIFEST).open("w") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())


def _tensors(root: Path, step: int, prefix: str) -> dict[str, torch.Tensor]:
    manifest, path = _manifest(root, step), _folder(root, step) / _TENSORS
    if sha256_file(path) != manifest["sha256"]:
        raise ArtifactCorrupt(f"the checkpoint of step {step} does not match its hash; delete that folder to continue")
    return {name.removeprefix(prefix): value for name, value in load_file(path).items() if name.startswith(prefix)}


def _manifest(root: Path, step: int) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((_folder(root, step) / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactCorrupt(f"the checkpoint of step {step} can't be read; delete that folder to continue") from error
    return manifest


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"
