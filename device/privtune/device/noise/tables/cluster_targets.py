"""What is released in place of a token: the one target of its cluster, or a word drawn from the cluster.

B records, T tokens, D hidden width, K clusters, U usable ids.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.cluster_table import ClusterTable
from privtune.device.noise.tables.public_tables import TableRows
from privtune.device.noise.tables.table_cache import cached


class ClusterTargets(ClusterTable):
    """Draws the targets of a cluster table."""

    def draw(self, ids_BT: Tensor, mask_BT: Tensor, generator: NoiseSource) -> Tensor:
        """The targets of a micro-batch, h_BTD float32. They depend on the text only through its clusters."""
        if self.params.target == "centre":
            return self.centres.vectors(self.draw_rows(ids_BT, mask_BT, generator))
        reported_BT, content_BT = self._reported(ids_BT, mask_BT, generator)
        drawn_BT = torch.where(content_BT, self._members(reported_BT.clamp(min=0), generator), ids_BT)
        return self.context.states(drawn_BT, self.injection, mask_BT)

    @property
    def responds(self) -> bool:
        """Whether clusters are reported by randomised response."""
        return self.params.epsilon_cluster > 0 and self.count > 1

    def draw_rows(self, ids_BT: Tensor, mask_BT: Tensor, generator: NoiseSource) -> Tensor:
        """The row of `centres` for each position, where targets are centres; int64, shape (B, T)."""
        reported_BT, content_BT = self._reported(ids_BT, mask_BT, generator)
        return torch.where(content_BT, reported_BT, self.centres.special_V[ids_BT])

    @cached_property
    def centres(self) -> TableRows:
        """Centres, which a position's offset is added to, and special ids, which keep their vector."""
        return self.tables.with_special(self.centre_KD, self._offset_table)

    def _reported(self, ids_BT: Tensor, mask_BT: Tensor, generator: NoiseSource) -> tuple[Tensor, Tensor]:
        """The cluster that is reported at each position, and which positions are neither special nor padding."""
        cluster_BT = self.cluster_V[ids_BT]
        content_BT = (cluster_BT >= 0) & mask_BT
        return self.respond(cluster_BT, content_BT, generator), content_BT

    def respond(self, cluster_BT: Tensor, content_BT: Tensor, generator: NoiseSource) -> Tensor:
        """Report clusters by randomised response, if it is on; those of special tokens and padding stay."""
        if not self.responds:
            return cluster_BT
        reported_BT = generator.randomised_response(cluster_BT, self.count, self.params.epsilon_cluster)
        return torch.where(content_BT, reported_BT, cluster_BT)

    @cached_property
    def _offset_table(self) -> Tensor:
        """Public position offsets (P, D)."""
        settings = {"injection": self.injection, "longest": self.context.positions}

        def make() -> dict[str, Tensor]:
            return {"offsets": self.context.position_offsets(self.injection)}

        return cached(self.context, "positions", settings, make)["offsets"]

    @cached_property
    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids sorted by cluster, the running sum of their weights (root of frequency), and each cluster's last index.

        Empty clusters (possible in a table from a file) have the last index of the cluster before.
        """
        order_U = torch.argsort(self.cluster_U, stable=True)
        sorted_U = self.cluster_U[order_U]
        weight_U = torch.from_numpy(self.tables.frequency_U).sqrt()[order_U]
        # Each cluster's weights sum to one, so the running sum of cluster k goes from k to k + 1.
        total_K = torch.zeros(self.count, dtype=torch.float64).index_add_(0, sorted_U, weight_U)
        inside_U = (weight_U / total_K[sorted_U]).cumsum(0)
        present_K = total_K > 0
        running_U = inside_U + sorted_U - (present_K.long().cumsum(0) - 1)[sorted_U]
        last_K = torch.bincount(self.cluster_U, minlength=self.count).cumsum(0) - 1
        return self.context.usable_ids[order_U], running_U, last_K

    def _members(self, cluster_BT: Tensor, generator: NoiseSource) -> Tensor:
        """An id for each position, drawn from its cluster."""
        ids_U, running_U, last_K = self._mixture
        place_BT = torch.searchsorted(running_U, cluster_BT + generator.uniform(*cluster_BT.shape), right=True)
        first_BT = torch.where(cluster_BT > 0, last_K[(cluster_BT - 1).clamp(min=0)] + 1, 0)
        return ids_U[torch.minimum(torch.maximum(place_BT, first_BT), last_K[cluster_BT].clamp(min=0))]
