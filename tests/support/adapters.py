"""Adapters: with something in them, as the cloud hands them out, and the answers of the parts that they are in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from privtune.cloud.compute.top_session import TopSession
from privtune.shared.modeling.partition import Partition, classification_readout


def disturb(parameters: Iterable[nn.Parameter], seed: int = 5) -> None:
    """Add noise to parameters in place: a fresh adapter changes nothing, so nothing could be compared."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def split_logits(
    partition: Partition, cut: int, top: nn.Module, head: nn.Module, ids_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    """logits_BC of a classifier through bottom, top and head."""
    readout_B = classification_readout(partition.readout, mask_BT.sum(1), ids_BT.shape[1])
    return head(top.eval()(partition.bottom(cut)(ids_BT, mask_BT), mask_BT, readout_B)).detach()


def exported(session: TopSession) -> dict[str, Tensor]:
    """The adapter as the cloud hands it out, read as a whole: the next export replaces the file."""
    session.export(session.folder / "exported")
    return load((session.folder / "exported" / "adapter_model.safetensors").read_bytes())


def held_tensors(top: Any) -> list[torch.Tensor]:
    """Every tensor that a session reaches by its attributes, modules and optimiser."""
    seen: set[int] = set()
    open_ends: list[Any] = [vars(top)]
    found: list[torch.Tensor] = []
    skipped = ("Host", "Speeds", "JobSpec", "PosixPath", "JointTop")
    while open_ends:
        one = open_ends.pop()
        if id(one) in seen or type(one).__name__ in skipped:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found += [one, *([one.grad] if one.grad is not None else [])]
        elif isinstance(one, dict):
            open_ends += one.values()
        elif isinstance(one, list | tuple | set):
            open_ends += one
        elif hasattr(one, "__dict__") and not isinstance(one, type):
            open_ends.append(vars(one))
            open_ends.append(getattr(one, "state", None))
    return found
