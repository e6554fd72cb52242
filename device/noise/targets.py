"""What stands for a token when its whole cluster shares one target. Public tables only.

B records, T tokens, D hidden width, C clusters, V vocabulary.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from device.noise.clusters import make_clusters
from device.noise.context import Injection, NoiseContext
from device.noise.params import ClusterParams
from device.noise.randomness import NoiseSource
from device.noise.tables import Tables, cached, lexicon_groups, recipe

_CLUSTERED = ("cluster_size", "max_share", "frequency_weight", "lexicon", "polar_size")
_MAX_OFFSETS = 512


class ClusterTargets:
    """Clusters of the vocabulary and the targets that they share."""

    def __init__(self, params: ClusterParams, context: NoiseContext, injection: Injection) -> None:
        self.params, self.context, self.injection = params, context, injection
        self.tables = Tables(context, injection)

    def recipe(self) -> str:
        """Fingerprint of the clusters."""
        return recipe(self.context, "clusters", self._settings())

    def _settings(self) -> dict[str, Any]:
        return {"injection": self.injection, **{key: getattr(self.params, key) for key in _CLUSTERED}}

    @cached_property
    def labels_U(self) -> Tensor:
        """Cluster of each usable id."""
        return cached(self.context, "clusters", self._settings(), self._make)["labels"].long()

    def _make(self) -> dict[str, Tensor]:
        p, tables = self.params, self.tables
        tokens = [self.context.tokens[i] for i in self.context.usable_ids.tolist()]
        labels_U = make_clusters(
            tables.unit_UD,
            tables.frequency_U,
            size=p.cluster_size,
            max_share=p.max_share,
            frequency_weight=p.frequency_weight,
            groups_U=lexicon_groups(tokens, p.lexicon),
            group_sizes={1: p.polar_size, 2: p.polar_size},
            progress=self.context.progress,
        )
        return {"labels": torch.from_numpy(labels_U).to(torch.int32)}

    @cached_property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.labels_U.max()) + 1

    @cached_property
    def least(self) -> int:
        """Tokens in the smallest cluster."""
        return int(torch.bincount(self.labels_U).min())

    @cached_property
    def guessed(self) -> float:
        """Share of running words that frequency alone names once the cluster is known."""
        top_C = np.zeros(self.count)
        np.maximum.at(top_C, self.labels_U.numpy(), self.tables.frequency_U)
        return float(top_C.sum() / self.tables.frequency_U.sum())

    @cached_property
    def label_V(self) -> Tensor:
        """Cluster of each id; -1 for special ids; ids that are no text (unknown, bytes) join the largest cluster."""
        label_V = torch.full((len(self.context.tokens),), int(torch.bincount(self.labels_U).argmax()))
        label_V[self.context.usable_ids] = self.labels_U
        label_V[[i for i in self.context.special_ids if i < len(label_V)]] = -1
        return label_V

    @cached_property
    def centre_CD(self) -> Tensor:
        """Centre of each cluster, moved out to the prototypes' mean distance from their common mean.

        Means shrink: a bare centre is shorter than anything that the top has seen. Frequent words weigh more (root).
        """
        e_UD = self.tables.prototypes_UD
        weight_U1 = torch.from_numpy(self.tables.frequency_U).sqrt().float().unsqueeze(1)
        total_CD = torch.zeros(self.count, e_UD.shape[1]).index_add_(0, self.labels_U, e_UD * weight_U1)
        mass_C1 = torch.zeros(self.count, 1).index_add_(0, self.labels_U, weight_U1)
        mean_D = e_UD.mean(dim=0)
        typical = (e_UD - mean_D).norm(dim=-1).mean()
        away_CD = total_CD / mass_C1 - mean_D
        moved_CD: Tensor = mean_D + away_CD * (typical / away_CD.norm(dim=-1, keepdim=True).clamp(min=1e-9))
        return moved_CD

    @cached_property
    def diameter(self) -> float:
        """Largest distance of two centres: exact, every position has the same offset."""
        return float(torch.cdist(self.centre_CD, self.centre_CD).max()) * (1 + 1e-6)

    def draw(self, ids_BT: Tensor, mask_BT: Tensor, generator: NoiseSource) -> Tensor:
        """The targets of a micro-batch, h_BTD float32. They depend on the text through its clusters alone."""
        label_BT = self.label_V[ids_BT]
        content_BT = (label_BT >= 0) & mask_BT
        reported_BT = self._respond(label_BT, content_BT, generator)
        if self.params.target == "centre":
            return self._centres(ids_BT, reported_BT, content_BT)
        drawn_BT = torch.where(content_BT, self._members(reported_BT.clamp(min=0), generator), ids_BT)
        run = self.context.bottom.embed if self.injection == "embedding" else self.context.bottom
        return run(drawn_BT, mask_BT.long()).to(torch.float32)

    def _respond(self, label_BT: Tensor, content_BT: Tensor, generator: NoiseSource) -> Tensor:
        """k-ary randomised response: with chance C / (e^eps + C - 1) any cluster, evenly, in place of the true one."""
        if self.params.epsilon_cluster == 0 or self.count < 2:
            return label_BT
        chance = self.count / (np.expm1(self.params.epsilon_cluster) + self.count)
        lie_BT = (generator.uniform(*label_BT.shape) < chance) & content_BT
        return torch.where(lie_BT, generator.integers(self.count, *label_BT.shape), label_BT)

    def _centres(self, ids_BT: Tensor, reported_BT: Tensor, content_BT: Tensor) -> Tensor:
        offsets_TD = self._offsets(ids_BT.shape[1])
        h_BTD = self.centre_CD[reported_BT.clamp(min=0)] + offsets_TD
        special_BT = ~content_BT
        return torch.where(special_BT.unsqueeze(-1), self._special_VD[ids_BT], h_BTD)

    def _offsets(self, length: int) -> Tensor:
        """Public position offsets; positions beyond 512 share the last one."""
        known = self._offset_table
        if length <= len(known):
            return known[:length]
        return torch.cat([known, known[-1:].expand(length - len(known), -1)])

    @cached_property
    def _offset_table(self) -> Tensor:
        longest = min(_MAX_OFFSETS, self.context.longest)
        settings = {"injection": self.injection, "longest": longest}
        make = lambda: {"offsets": self.context.position_offsets(self.injection, longest)}  # noqa: E731
        return cached(self.context, "positions", settings, make)["offsets"]

    @cached_property
    def _special_VD(self) -> Tensor:
        table_VD = torch.zeros(len(self.context.tokens), self.context.hidden_size)
        for token, state_D in self.tables.special_states.items():
            table_VD[token] = state_D
        return table_VD

    @cached_property
    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids sorted by cluster, the running sum of their weights (root of frequency), and each cluster's start."""
        order_U = torch.argsort(self.labels_U, stable=True)
        weight_U = torch.from_numpy(self.tables.frequency_U).sqrt()[order_U]
        # Each cluster's weights sum to one, so the running sum of cluster c goes from c to c + 1.
        total_C = torch.zeros(self.count, dtype=torch.float64).index_add_(0, self.labels_U[order_U], weight_U)
        running_U = (weight_U / total_C[self.labels_U[order_U]]).cumsum(0)
        last_C = torch.bincount(self.labels_U, minlength=self.count).cumsum(0) - 1
        return self.context.usable_ids[order_U], running_U, last_C

    def _members(self, label_BT: Tensor, generator: NoiseSource) -> Tensor:
        """One id a position, drawn from the mixture of its cluster."""
        ids_U, running_U, last_C = self._mixture
        place_BT = torch.searchsorted(running_U, label_BT + generator.uniform(*label_BT.shape), right=True)
        first_BT = torch.where(label_BT > 0, last_C[(label_BT - 1).clamp(min=0)] + 1, 0)
        return ids_U[torch.minimum(torch.maximum(place_BT, first_BT), last_C[label_BT])]
