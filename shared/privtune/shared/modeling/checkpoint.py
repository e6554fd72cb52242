"""One side's training state on disk: parameters, optimiser, schedule and step, whole or not at all.

Both sides write checkpoints after the same optimiser steps, and a resume starts from the newest step that both have.
Data order, dropout and noise need no state: they are functions of (seed, step) or stored releases.
No pickle: tensors are safetensors, everything else is JSON. A folder without a manifest does not count, and a resume
passes over one whose hash does not match.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from privtune.shared.at_rest import read_text, write_bytes
from privtune.shared.errors import ArtifactCorrupt, StorageFull
from privtune.shared.files import replacing_folder
from privtune.shared.manifest import sha256_file
from privtune.shared.modeling.tensor_files import load_tensors, save_tensors

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_TENSORS = "state.safetensors"
_KEPT = 2  # newest checkpoints


def save_checkpoint(
    root: Path,
    step: int,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    candidate: bool = False,
    candidates: int = 0,
) -> None:
    """Write the state after `step` applied steps under `root`; only this checkpoint and the one before it are kept.

    candidate: this state may become the model; so many newest `candidates` are kept besides.

    Newer ones go too: they are of a run that was taken back to an earlier step, and until here it could be resumed.
    Raises `StorageFull` when it can't be written; earlier checkpoints then stay as they were.
    """
    try:
        with replacing_folder(_folder(root, step)) as scratch:
            _write(scratch, step, parameters, optimizer, scheduler, candidate)
    except OSError as error:
        raise StorageFull(f"a checkpoint can't be written under {root.name}: {error.strerror}") from error
    past = [found for found in _written_steps(root) if found <= step]
    chosen = [found for found in past if candidates and _is_candidate(root, found)][-candidates:]
    _keep(root, {*past[-_KEPT:], *chosen})


def keep_only(root: Path, step: int) -> None:
    """Drop every checkpoint but that of `step`, which has become the model."""
    _keep(root, {step})


def training_state(parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every tensor of a training state on the CPU: `param.NAME`, and `optim.INDEX.KEY` of the moments.

    On the CPU already, they are the live ones.
    """
    tensors = {f"param.{name}": value.detach().cpu().contiguous() for name, value in parameters.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optim.{index}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return tensors


def parameters_of(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters of a `training_state`, by name."""
    return {name.removeprefix("param."): value for name, value in state.items() if name.startswith("param.")}


def moments_of(state: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """The moments of a `training_state`, as an optimiser's state dict has them."""
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        kind, _, rest = name.partition(".")
        if kind == "optim":
            index, key = rest.split(".", 1)
            moments.setdefault(int(index), {})[key] = tensor
    return moments


def checkpoint_steps(root: Path) -> list[int]:
    """Steps of the checkpoints under `root` that can be resumed from, oldest first; reads them all.

    One that a crash has torn is passed over, which is logged.
    """
    whole = []
    for step in _written_steps(root):
        try:
            _checked_manifest(root, step)
        except ArtifactCorrupt as error:
            log.warning("%s", error.message)
        else:
            whole.append(step)
    return whole


def load_parameters(root: Path, step: int) -> dict[str, torch.Tensor]:
    """The parameters of a checkpoint, which suffice for inference. Raises `ArtifactCorrupt`."""
    return parameters_of(_tensors(root, step))


def load_checkpoint(
    root: Path,
    step: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> dict[str, torch.Tensor]:
    """Restore optimiser and schedule in place; returns the parameters. Raises `ArtifactCorrupt`."""
    state, manifest = _tensors(root, step), _checked_manifest(root, step)
    optimizer.load_state_dict({"state": moments_of(state), "param_groups": manifest["param_groups"]})
    scheduler.load_state_dict(manifest["scheduler"])
    return parameters_of(state)


def _write(
    folder: Path,
    step: int,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    candidate: bool,
) -> None:
    save_tensors(training_state(parameters, optimizer), folder / _TENSORS)
    groups = optimizer.state_dict()["param_groups"]
    schedule = {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}
    manifest = {
        "step": step,
        "sha256": sha256_file(folder / _TENSORS),
        "param_groups": groups,
        "scheduler": {**schedule, "lr_lambdas": [None] * len(groups)},
        "candidate": candidate,
    }
    write_bytes(folder / _MANIFEST, json.dumps(manifest).encode())


def _keep(root: Path, steps: set[int]) -> None:
    for other in set(_written_steps(root)) - steps:
        shutil.rmtree(_folder(root, other), ignore_errors=True)


def _is_candidate(root: Path, step: int) -> bool:
    with suppress(OSError, ValueError, KeyError):
        return bool(json.loads(read_text(_folder(root, step) / _MANIFEST))["candidate"])
    return False


def _written_steps(root: Path) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step-")) for path in root.glob(f"step-*/{_MANIFEST}"))


def _tensors(root: Path, step: int) -> dict[str, torch.Tensor]:
    _checked_manifest(root, step)
    tensors: dict[str, torch.Tensor] = load_tensors(_folder(root, step) / _TENSORS)
    return tensors


def _checked_manifest(root: Path, step: int) -> dict[str, Any]:
    """The manifest of a checkpoint whose tensors match their hash. Raises `ArtifactCorrupt`."""
    try:
        manifest: dict[str, Any] = json.loads(read_text(_folder(root, step) / _MANIFEST))
        if sha256_file(_folder(root, step) / _TENSORS) == manifest["sha256"]:
            return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactCorrupt(f"the checkpoint of step {step} can't be read") from error
    raise ArtifactCorrupt(f"the checkpoint of step {step} does not match its hash")


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"
