"""The token graph over prototypes: which tokens are near each other, in how many hops. Public data only.

U usable ids (by their place in `NoiseContext.usable_ids`), D width, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from privtune.device.noise.context import OnProgress
from privtune.device.noise.tables.clustering import WIDE, kmeans
from privtune.shared.errors import InvalidInput

IntArray = NDArray[np.int64]
_ROWS = 512  # compared at once
_LIST, _PROBED = 256, 32  # rows of a list, on average, and lists that a row is compared with
_SAMPLE = 256  # rows whose true neighbours are found to measure the recall


def centred(table_UD: Tensor) -> Tensor:
    """Rows minus their mean, normalised: with the mean, all states of a transformer are similar by cosine."""
    return normalize(table_UD - table_UD.mean(dim=0), dim=-1)


def nearest(unit_UD: Tensor, k: int, progress: OnProgress = lambda what, share: None) -> Tensor:
    """Indices (U, k) of the k most similar other rows, most similar first. Exact up to 60,000 rows.

    Above that a row is compared with the members of the lists nearest to its own (inverted lists, Jegou et al. 2011,
    "Product quantization for nearest neighbor search"); `recall` measures what that misses. Equal tables give equal
    neighbours on every device, so no library does this that may be absent or differ by version.
    """
    total = len(unit_UD)
    if total <= k:
        raise InvalidInput(f"a vocabulary of {total} tokens has no {k} neighbours each", param="neighbours")
    out_UK, done = torch.empty(total, k, dtype=torch.int64), 0
    for own, others in _everyone(total) if total <= WIDE else _in_lists(unit_UD, k):
        similar = unit_UD[own] @ unit_UD[others].T
        similar[own[:, None] == others[None]] = -torch.inf
        out_UK[own] = others[similar.topk(k, dim=-1).indices]
        done += len(own)
        progress("neighbours", done / total)
    return out_UK


def recall(unit_UD: Tensor, nearest_UK: Tensor) -> float:
    """Share of the true nearest rows that are among those found, over rows spread evenly; 1 for an exact search."""
    total, k = nearest_UK.shape
    if total <= WIDE:
        return 1.0
    rows = torch.linspace(0, total - 1, _SAMPLE).round().long()
    similar = unit_UD[rows] @ unit_UD.T
    similar[torch.arange(len(rows)), rows] = -torch.inf
    true_NK = similar.topk(k, dim=-1).indices
    return float((true_NK[:, :, None] == nearest_UK[rows][:, None, :]).any(-1).float().mean())


def _everyone(total: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows, some at a time, and whom they are compared with."""
    everyone = torch.arange(total)
    for own in torch.split(everyone, _ROWS):
        yield own, everyone


def _in_lists(unit_UD: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of each list, and those of the lists nearest to it."""
    list_U = torch.from_numpy(kmeans(unit_UD, len(unit_UD) // _LIST))
    count = int(list_U.max()) + 1
    centre_LD = normalize(torch.zeros(count, unit_UD.shape[1]).index_add_(0, list_U, unit_UD), dim=-1)
    members = torch.split(list_U.argsort(stable=True), torch.bincount(list_U).tolist())
    near_LL = (centre_LD @ centre_LD.T).argsort(dim=-1, descending=True, stable=True)
    for own, near in zip(members, near_LL.tolist(), strict=True):
        taken = _PROBED
        while sum(len(members[other]) for other in near[:taken]) <= k:
            taken += 1
        others = torch.cat([members[other] for other in near[:taken]]).sort().values
        for part in torch.split(own, _ROWS):
            yield part, others


@dataclass(frozen=True)
class Graph:
    """Symmetric neighbourhoods as compressed rows: the neighbours of u are targets[offsets[u]:offsets[u + 1]]."""

    offsets: IntArray
    targets: IntArray

    @classmethod
    def from_nearest(cls, nearest_UK: Tensor) -> Graph:
        """Connect two ids if either is among the other's nearest."""
        total, k = nearest_UK.shape
        a = np.repeat(np.arange(total, dtype=np.int64), k)
        b = nearest_UK.numpy().ravel()
        codes = np.unique(np.concatenate([a * total + b, b * total + a]))
        sources, targets = codes // total, codes % total
        offsets = np.zeros(total + 1, dtype=np.int64)
        np.cumsum(np.bincount(sources, minlength=total), out=offsets[1:])
        return cls(offsets, targets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def neighbours(self, node: int) -> IntArray:
        """Nodes one edge away."""
        return self.targets[self.offsets[node] : self.offsets[node + 1]]

    def shells(self, node: int, hops: int) -> list[IntArray]:
        """shell_0 (the node) to shell_hops: nodes at graph distance exactly n, sorted; later shells may be empty."""
        out = [np.array([node], dtype=np.int64)]
        seen = out[0]
        for _ in range(hops):
            reached = [self.neighbours(int(u)) for u in out[-1]]
            fresh = np.setdiff1d(np.concatenate(reached) if reached else seen[:0], seen)
            out.append(fresh)
            seen = np.union1d(seen, fresh)
        return out

    def edges(self) -> tuple[IntArray, IntArray]:
        """Both ends of every edge, each edge once."""
        sources = np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))
        once = sources < self.targets
        return sources[once], self.targets[once]
