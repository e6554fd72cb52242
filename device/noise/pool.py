"""`pool`: sums of neighbouring vectors. Words hide in one another, order is lost, and fewer bytes leave."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from device.noise.base import Mechanism, Release, clip_rows
from device.noise.cluster import target_facts
from device.noise.context import NoiseContext
from device.noise.dchi import clip_radius
from device.noise.params import PoolParams
from device.noise.randomness import NoiseSource
from device.noise.targets import ClusterTargets
from shared.privacy import Statement, dchi_eta
from shared.statements import clipped_statement, no_bound_statement, randomised_statement


class Pool(Mechanism):
    """Rows 1..k, k+1..2k, ... of a record become (sum / sqrt(k)) (+ d_chi noise). A leading special token stays alone.

    The summands are cluster targets or vectors clipped to R, so a sum is at most sqrt(k) R long and the loss of a
    released row is 2 * eta * sqrt(k) * R; one changed token moves its row by 2R / sqrt(k) only (at cut 0).
    Not for tasks with a label at each position.
    """

    name: ClassVar[str] = "pool"
    shortens = True

    def __init__(self, params: PoolParams, context: NoiseContext) -> None:
        super().__init__(context)
        self.injection = params.injection
        self.params = params
        self.clip = clip_radius(params, context)
        norm = context.typical_norm(params.injection)
        self.eta = dchi_eta(self.dim, params.noise_ratio * norm) if params.noise_ratio else None
        self.targets = ClusterTargets(params, context, params.injection) if params.clusters else None

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        if self.targets is not None:
            h_BTD = self.targets.draw(ids_BT, mask_BT, generator)
        if self.clip is not None:
            h_BTD = clip_rows(h_BTD, self.clip)
        pooled = pool_rows(h_BTD, mask_BT, self._alone(ids_BT), self.params.size)
        if self.eta is None:
            return pooled
        noise_BTD = generator.dchi(self.eta, *pooled.h_BTD.shape).to(pooled.h_BTD.device)
        return Release(h_BTD=pooled.h_BTD + noise_BTD, mask_BT=pooled.mask_BT)

    def _alone(self, ids_BT: Tensor) -> Tensor:
        """Whether each record starts with a special token, whose row a classifier may read: bool, shape B."""
        return torch.isin(ids_BT[:, 0], torch.tensor(sorted(self.context.special_ids), dtype=torch.int64))

    def _statement(self) -> Statement:
        p = self.params
        if self.targets is not None and p.epsilon_cluster and self.targets.count > 1:
            return randomised_statement(
                name=self.name,
                injection=p.injection,
                epsilon=p.epsilon_cluster,
                clusters=self.targets.count,
                eta=self.eta,
                dim=self.dim,
            )
        if self.eta is not None and self.clip is not None:
            return clipped_statement(
                name=self.name,
                injection=p.injection,
                eta=self.eta,
                dim=self.dim,
                clip=self.clip * math.sqrt(p.size),
                extra=(f"A position is a sum of up to {p.size} tokens' vectors over the root of {p.size}.",),
            )
        numbers = {"pool": float(p.size)}
        row = "unclipped"
        why = "sums of vectors without calibrated noise can be told apart."
        if self.targets is not None:
            row = "cluster"
            numbers |= {"clusters": float(self.targets.count), "guessed_by_frequency": self.targets.guessed}
            why = "tokens of one public cluster are never told apart, but which clusters a sum is made of is shown."
        return no_bound_statement(name=self.name, row=row, injection=p.injection, numbers=numbers, why=why)  # type: ignore[arg-type]

    def _facts(self) -> dict[str, Any]:
        facts = {"size": self.params.size, "clip": self.clip, "eta": self.eta}
        return facts if self.targets is None else {**facts, **target_facts(self.params, self.targets)}


def pool_rows(h_BTD: Tensor, mask_BT: Tensor, alone_B: Tensor, size: int) -> Release:
    """Sum `size` neighbouring rows over sqrt(size); where alone_B, the first row is its own group, as it is.

    The divisor is the same for a shorter last group, so that its sensitivity is no larger than the others'.
    """
    place_T = torch.arange(mask_BT.shape[1])
    first_B1 = alone_B.long().unsqueeze(1)
    group_BT = torch.where(place_T < first_B1, 0, first_B1 + (place_T - first_B1) // size)
    length = int(group_BT[mask_BT].max()) + 1
    group_BT = group_BT.clamp(max=length - 1)
    kept_BTD = h_BTD * mask_BT.unsqueeze(-1)
    out_BPD = torch.zeros(len(h_BTD), length, h_BTD.shape[2])
    out_BPD.scatter_add_(1, group_BT.unsqueeze(-1).expand_as(kept_BTD), kept_BTD)
    lengths_B = mask_BT.sum(dim=1)
    groups_B = torch.where(alone_B, 1 + (lengths_B - 1 + size - 1) // size, (lengths_B + size - 1) // size)
    divisor_BP = torch.full((len(h_BTD), length), math.sqrt(size))
    divisor_BP[:, 0] = torch.where(alone_B, 1.0, math.sqrt(size))
    mask_BP = torch.arange(length) < groups_B.unsqueeze(1)
    return Release(h_BTD=out_BPD / divisor_BP.unsqueeze(-1), mask_BT=mask_BP)
