"""`pool`: sums of neighbouring vectors. Words hide among their neighbours, order is lost, and fewer bytes leave."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from privtune.device.noise.base import Mechanism, Release
from privtune.device.noise.clipping import clip_radius, clip_rows, reach
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.params import PoolParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.cluster_table import UNACCOUNTED
from privtune.device.noise.tables.cluster_targets import ClusterTargets
from privtune.device.privacy.bounds import dchi_eta
from privtune.device.privacy.statements import Statement
from privtune.device.privacy.statements.added_noise import pooled_statement
from privtune.device.privacy.statements.fitted_tables import fitted_statement
from privtune.device.privacy.statements.no_bound import no_bound_statement
from privtune.device.privacy.statements.shared_target import randomised_statement
from privtune.device.privacy.statements.statement import Row


class Pool(Mechanism):
    """Rows 1..k, k+1..2k, ... of a record become (sum / sqrt(k)) (+ d_chi noise). A leading special token stays alone.

    The summands are cluster targets or vectors clipped to R, so a released row is at most sqrt(k) * R long. All of its
    k tokens may change, so its loss is 2 * eta * sqrt(k) * R, or k * epsilon with randomised response of epsilon per
    token. One changed summand moves its row by at most 2R / sqrt(k).
    Not for tasks with a label at each position.
    """

    name: ClassVar[str] = "pool"
    shortens = PoolParams.shortens

    def __init__(self, params: PoolParams, context: NoiseContext) -> None:
        super().__init__(context)
        self.injection = params.injection
        self.params = params
        self.clip = clip_radius(params, context)
        norm = context.typical_norm(params.injection)
        self.eta = dchi_eta(self.dim, params.noise_ratio * norm) if params.noise_ratio else None
        self.targets = ClusterTargets(params, context, params.injection) if params.clusters else None
        self.reads_vectors = self.targets is None

    def prepare(self) -> dict[str, float]:
        """Figures of the clusters, if it uses any."""
        return {} if self.targets is None else self.targets.figures()

    def resolved(self) -> dict[str, float]:
        """The clipping length, relative to the typical vector length."""
        return {"clip_ratio": self.clip / self.context.typical_norm(self.injection) if self.clip else math.inf}

    def fitted_shares(self) -> Tensor | None:
        """Of the word counts."""
        return None if self.targets is None else self.targets.fitted_shares()

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        if self.targets is not None:
            h_BTD = self.targets.draw(ids_BT, mask_BT, generator)
        if self.clip is not None:
            h_BTD = clip_rows(h_BTD, self.clip)
        pooled = pool_rows(h_BTD, mask_BT, self._alone(ids_BT), self.params.size)
        pooled = replace(pooled, share_BT=self._shares(ids_BT, mask_BT, pooled))
        if self.eta is None:
            return pooled
        noise_BTD = generator.dchi(self.eta, *pooled.h_BTD.shape).to(pooled.h_BTD.device)
        return replace(pooled, h_BTD=pooled.h_BTD + noise_BTD)

    def _shares(self, ids_BT: Tensor, mask_BT: Tensor, pooled: Release) -> Tensor | None:
        """Randomised response: the words of each sum, out of `size`. Clipped vectors: the reach of their sum."""
        size = self.params.size
        if self.targets is None:
            return None if self.clip is None else reach(pooled.h_BTD, self.clip * math.sqrt(size))
        if not self.targets.responds:
            return None
        word_BT = mask_BT & ~self.context.is_special(ids_BT)
        group_BT = self.groups(ids_BT, mask_BT).clamp(max=pooled.mask_BT.shape[1] - 1)
        return torch.zeros(pooled.mask_BT.shape).scatter_add_(1, group_BT, word_BT.float()) / size

    def groups(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The released row that each token is summed into, numbered within its record; public; int64, shape (B, T)."""
        return group_rows(mask_BT, self._alone(ids_BT), self.params.size)

    def _alone(self, ids_BT: Tensor) -> Tensor:
        """Whether each record starts with a special token, whose row a classifier may read; bool, shape B."""
        return self.context.is_special(ids_BT[:, 0])

    def _statement(self) -> Statement:
        p, targets = self.params, self.targets
        if targets is not None and targets.unaccounted:
            return self._no_bound("fitted", UNACCOUNTED)
        if targets is not None and targets.responds:
            statement = randomised_statement(
                name=self.name,
                injection=p.injection,
                epsilon=p.epsilon_cluster,
                clusters=targets.count,
                summed=p.size,
                eta=self.eta,
                dim=self.dim,
            )
        elif self.eta is not None and self.clip is not None:
            statement = pooled_statement(
                name=self.name, injection=p.injection, eta=self.eta, dim=self.dim, clip=self.clip, size=p.size
            )
        elif targets is not None:
            why = "tokens of one public cluster are never told apart, but which clusters a sum is made of is revealed."
            statement = self._no_bound("cluster", why)
        else:
            statement = self._no_bound("unclipped", "sums of vectors without calibrated noise can be told apart.")
        if targets is None or not targets.fitted_epsilon:
            return statement
        return fitted_statement(statement, targets.fitted_epsilon, targets.fitted_delta)

    def _no_bound(self, row: Row, why: str) -> Statement:
        numbers = {"pool": float(self.params.size), **self.prepare()}
        return no_bound_statement(name=self.name, row=row, injection=self.injection, numbers=numbers, why=why)

    def _facts(self) -> dict[str, Any]:
        facts = {"size": self.params.size, "clip": self.clip, "eta": self.eta}
        return facts if self.targets is None else {**facts, **self.targets.facts()}


def group_rows(mask_BT: Tensor, alone_B: Tensor, size: int) -> Tensor:
    """The row (B, T) that each position is summed into; where alone_B, the first position has row 0 to itself."""
    place_T = torch.arange(mask_BT.shape[1])
    first_B1 = alone_B.long().unsqueeze(1)
    return torch.where(place_T < first_B1, 0, first_B1 + (place_T - first_B1) // size)


def pool_rows(h_BTD: Tensor, mask_BT: Tensor, alone_B: Tensor, size: int) -> Release:
    """Sum `size` neighbouring rows over sqrt(size); where alone_B, the first row is released unchanged.

    A shorter last group has the same divisor, so that its sensitivity is no larger than the others'.
    """
    group_BT = group_rows(mask_BT, alone_B, size)
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
