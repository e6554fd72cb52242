"""How far a device's blocks are from the whole model on public text: what an owner with a copy of it can check.

Blocks that were taught well are nearer than untaught ones. It can't show that they were taught nothing else.

B texts, T tokens, D hidden width, N rows that are not padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from privtune.shared.errors import DataInvalid
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage, bottom_from_model
from privtune.shared.modeling.load import load_task_model
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.taught_package import with_taught_blocks

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Mean squared error of final states over the variance of the model's own, as a card has it. texts: how many."""

    untaught: float
    taught: float
    texts: int


@torch.no_grad()
def taught_distance(
    folder: Path, spec: JobSpec, local_model: str, texts: Sequence[str], label_names: Sequence[str]
) -> Distances:
    """The distances of a job's blocks before and after teaching. folder: the taught package.

    Raises ArtifactCorrupt, VersionMismatch for a package that does not fit the copy; DataInvalid without a text.
    """
    classes = max(2, len(label_names))
    whole = Partition(load_task_model(local_model, spec.task, num_labels=classes))
    parts = [bottom_from_model(local_model, spec.task, spec.cut, tail=spec.tail, num_labels=classes) for _ in range(2)]
    plain, taught = parts[0], with_taught_blocks(parts[1], folder, label_names)
    limit = spec.train.longest(plain.max_positions)
    encoded = [ids_T for ids_T in plain.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"] if ids_T]
    if not encoded:
        raise DataInvalid("the public text has no token that the model knows")
    embed, top, errors = whole.bottom(0), whole.top(0), torch.zeros(2)
    finals: list[Tensor] = []
    rows = 0
    for start in range(0, len(encoded), _BATCH):
        ids_BT, mask_BT = _padded(encoded[start : start + _BATCH])
        h0_BTD, real_N = embed.embed(ids_BT, mask_BT), mask_BT.flatten().nonzero().squeeze(1)
        final_ND = top(h0_BTD, mask_BT, real_N)
        for place, package in enumerate((plain, taught)):
            errors[place] += (_alone(package, h0_BTD, mask_BT, real_N) - final_ND).square().mean(1).sum()
        finals.append(final_ND)
        rows += len(final_ND)
    untaught, after = (errors / rows / torch.cat(finals).var()).tolist()
    return Distances(untaught=untaught, taught=after, texts=len(encoded))


def _alone(package: BottomPackage, h0_BTD: Tensor, mask_BT: Tensor, real_N: Tensor) -> Tensor:
    """Final states of a device's blocks in sequence, without the cloud's."""
    h_BTD = h0_BTD
    if package.below is not None:
        h_BTD = package.below(h0_BTD, mask_BT, torch.arange(mask_BT.numel())).view_as(h0_BTD)
    if package.tail is None:
        raise DataInvalid("this job has no tail, so there is nothing that could be taught")
    final_ND: Tensor = package.tail(h_BTD, mask_BT, real_N)
    return final_ND


def _padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths_B = torch.tensor([len(ids_T) for ids_T in ids])
    ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids_T) for ids_T in ids], batch_first=True)
    return ids_BT, (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
