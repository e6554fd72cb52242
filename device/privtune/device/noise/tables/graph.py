"""The token graph over prototypes: which tokens are near each other, in how many hops. Public data only.

U usable ids (by their place in `NoiseContext.usable_ids`), D width, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from privtune.device.noise.context import OnProgress
from privtune.shared.errors import InvalidInput

IntArray = NDArray[np.int64]
_EXACT_LIMIT = 60_000  # above it, candidates come from a projection: U^2 D takes many minutes on a laptop
_PROJECTED = 96


def centred(table_UD: Tensor) -> Tensor:
    """Rows minus their mean, normalised: with the mean, all states of a transformer are similar by cosine."""
    return normalize(table_UD - table_UD.mean(dim=0), dim=-1)


def nearest(unit_UD: Tensor, k: int, progress: OnProgress = lambda what, share: None) -> Tensor:
    """Indices (U, k) of the k most similar other rows, most similar first. Exact up to 60,000 rows."""
    total = len(unit_UD)
    if total <= k:
        raise InvalidInput(f"a vocabulary of {total} tokens has no {k} neighbours each", param="neighbours")
    wide = total > _EXACT_LIMIT
    search_UD = unit_UD @ torch.linalg.eigh(unit_UD.T @ unit_UD)[1][:, -_PROJECTED:] if wide else unit_UD
    candidates = min(total - 1, 4 * k) if wide else k
    out = torch.empty(total, k, dtype=torch.int64)
    for start in range(0, total, 512):
        own = torch.arange(start, min(start + 512, total))
        similar = search_UD[own] @ search_UD.T
        similar[torch.arange(len(own)), own] = -torch.inf
        found = similar.topk(candidates, dim=-1).indices
        if wide:
            exact = torch.einsum("ud,ucd->uc", unit_UD[own], unit_UD[found])
            found = found.gather(1, exact.topk(k, dim=-1).indices)
        out[own] = found
        progress("neighbours", min(1.0, (start + 512) / total))
    return out


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
