"""The taught package: what a teaching made of a device's own blocks, as a folder.

    taught.safetensors  card.json  manifest.json (written last)

It comes from the cloud, the adversary. Hashes, names, shapes and numbers are checked; whether the weights teach what
they should, only measuring them can tell. Nothing of it makes a vector that leaves: those are of the bottom, which the
package does not touch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from privtune.shared.errors import ArtifactCorrupt, StorageFull, VersionMismatch, is_failure
from privtune.shared.files import replacing_folder, write_json
from privtune.shared.manifest import MANIFEST, sha256_file, verify, write_manifest
from privtune.shared.modeling.bottom_package import BottomPackage, TaughtBlocks
from privtune.shared.modeling.fresh_weights import fresh_by_design
from privtune.shared.modeling.partition import Top
from privtune.shared.printable import printable_json

FORMAT = 1
CARD = "card.json"
_WEIGHTS = "taught.safetensors"


def write_taught_package(folder: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write a package, which appears whole. card: as `docs/teach-down.md` lists it. Raises StorageFull."""
    try:
        with replacing_folder(folder) as scratch:
            tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
            save_file(tensors, scratch / _WEIGHTS, metadata={"format": "pt"})
            write_json(scratch / CARD, dict(card))
            write_manifest(scratch, format=FORMAT)
    except OSError as error:
        raise StorageFull(f"a taught package can't be written: {error.strerror}") from error


def read_card(folder: Path) -> dict[str, Any]:
    """What was taught, with which text, settings and figures. Raises ArtifactCorrupt."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactCorrupt(f"{folder.name} has no readable card; fetch it again") from error
    if not isinstance(card, dict):
        raise ArtifactCorrupt(f"{folder.name} has no readable card; fetch it again")
    return printable_json(card)


def with_taught_blocks(package: BottomPackage, folder: Path, label_names: Sequence[str]) -> BottomPackage:
    """The device's parts with taught blocks in place of their own; bottom and embedding stay as they are.

    The taught head is taken for a job of the same classes, in the same order; its other layers for every job.

    Raises ArtifactCorrupt for a damaged package or other blocks, VersionMismatch for those of another model.
    """
    if verify(folder).get("format") != FORMAT:
        raise VersionMismatch(f"{folder.name} is a taught package of another version of PrivTune")
    card = read_card(folder)
    if card.get("fingerprint") != package.fingerprint:
        raise VersionMismatch("these blocks were taught for another model than this device runs")
    try:
        state = load_file(folder / _WEIGHTS)
    except BaseException as error:  # safetensors raises kinds of its own, not exported, and may panic
        if not is_failure(error):
            raise
        raise ArtifactCorrupt(f"{folder.name} is not a usable taught package; fetch it again") from error
    if not all(value.dtype == torch.float32 and bool(torch.isfinite(value).all()) for value in state.values()):
        raise ArtifactCorrupt(f"{folder.name} holds numbers that are not finite or not float32; do not use it")
    for top in (package.below, package.tail):
        if top is not None:
            _fill(top, {name: state.pop(name, None) for name in _block_weights(top)}, folder.name)
    head = dict(package.head.named_parameters()) if package.task == "classification" else {}
    if not state.keys() <= head.keys():
        raise ArtifactCorrupt(f"{folder.name} holds weights of other blocks than this job's; do not use it")
    same = card.get("labels") == list(label_names)
    with torch.no_grad():
        for name, value in state.items():
            if value.shape == head[name].shape and (same or name not in _classes(package)):
                head[name].copy_(value)
            elif same:
                raise ArtifactCorrupt(f"{folder.name}: {name} has another shape than this model's; do not use it")
    return replace(package, taught=TaughtBlocks(sha256=sha256_file(folder / MANIFEST), card=card))


def _block_weights(top: Top) -> list[str]:
    """Names of what is taught in these blocks: of the blocks and what follows the last, not what all blocks share."""
    modules = (*top.block_names, *top.final_names)
    return [name for name, _ in top.named_parameters() if name.startswith(tuple(f"{one}." for one in modules))]


def _fill(top: Top, taught: Mapping[str, Tensor | None], name: str) -> None:
    """Put taught weights in place: new tensors, as the bottom shares the old ones."""
    for key, value in taught.items():
        module = top.task.get_submodule(key.rpartition(".")[0])
        old = getattr(module, key.rpartition(".")[2])
        if value is None or value.shape != old.shape:
            raise ArtifactCorrupt(f"{name} does not hold {key} of this model; do not use it")
        setattr(module, key.rpartition(".")[2], torch.nn.Parameter(value.float(), requires_grad=False))


def _classes(package: BottomPackage) -> frozenset[str]:
    """Names of the layer that has a row for each class."""
    return fresh_by_design(package.head.task, package.task)
