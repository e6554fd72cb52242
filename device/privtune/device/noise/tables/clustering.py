"""Clusters of the vocabulary, balanced so that knowing the cluster reveals little about the word.

N points, U usable ids, D width, E width of a point, C clusters. Everything is deterministic: a cluster table is public,
not noise.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.noise.context import OnProgress
from privtune.shared.errors import InvalidInput

WIDE = 60_000  # points: above it what takes U^2 D takes many minutes on a laptop
_ROUNDS = 12
_PROJECTED = 96  # principal directions in which so many points are clustered


def make_clusters(
    unit_UD: Tensor,
    frequency_U: NDArray[np.float64],
    *,
    size: int,
    max_share: float,
    frequency_weight: float,
    groups_U: NDArray[np.int64] | None = None,
    group_sizes: dict[int, int] | None = None,
    progress: OnProgress = lambda what, share: None,
) -> NDArray[np.int64]:
    """Cluster number of each id, 0..C-1, shape U. A group that can't satisfy size or share becomes one cluster.

    unit_UD: centred, normalised prototypes.
    frequency_U: positive.
    size: smallest number of members of a cluster.
    max_share: largest share of its cluster's frequency that one member may have: an attacker who sees the cluster and
        knows word frequencies guesses right no more often (context aside).
    frequency_weight: weight of similar log-frequency, relative to similar meaning.
    groups_U: ids of different groups never share a cluster.
    group_sizes: smallest number of members of a cluster of that group, instead of `size`.

    Raises InvalidInput for a frequency that is missing or not positive.
    """
    if len(unit_UD) != len(frequency_U) or (frequency_U <= 0).any():
        raise InvalidInput("clusters need a positive frequency for each id")
    logs = np.log(frequency_U)
    scaled = (logs - logs.mean()) / (logs.std() + 1e-9)
    points_UE = torch.cat([unit_UD, frequency_weight * torch.from_numpy(scaled).float()[:, None]], dim=1)
    groups = np.zeros(len(unit_UD), dtype=np.int64) if groups_U is None else groups_U
    labels_U = np.full(len(unit_UD), -1, dtype=np.int64)
    count = 0
    names = np.unique(groups)
    for done, group in enumerate(names.tolist()):
        members = np.flatnonzero(groups == group)
        least = (group_sizes or {}).get(group, size)
        local = _balance(points_UE[torch.from_numpy(members)], frequency_U[members], least, max_share)
        labels_U[members] = local + count
        count += int(local.max()) + 1
        progress("clusters", (done + 1) / len(names))
    return labels_U


def _balance(points_NE: Tensor, frequency_N: NDArray[np.float64], size: int, max_share: float) -> NDArray[np.int64]:
    labels_N = kmeans(points_NE, max(1, len(points_NE) // max(1, size * 3 // 2)))
    return _merge(points_NE.numpy(), frequency_N, labels_N, size, max_share)


def kmeans(points_NE: Tensor, count: int) -> NDArray[np.int64]:
    """Cluster of each point by k-means from evenly spread seeds; empty clusters are dropped, so labels are dense."""
    if len(points_NE) > WIDE and points_NE.shape[1] > _PROJECTED:
        points_NE = points_NE @ torch.linalg.eigh(points_NE.T @ points_NE)[1][:, -_PROJECTED:]
    spread = np.unique(np.linspace(0, len(points_NE) - 1, count).round().astype(np.int64))
    centres_CE = points_NE[torch.from_numpy(spread)].clone()
    labels_N = torch.zeros(len(points_NE), dtype=torch.int64)
    for _ in range(_ROUNDS):
        half_norms_C = centres_CE.square().sum(dim=1) / 2
        labels_N = torch.cat(
            [(part @ centres_CE.T - half_norms_C).argmax(dim=1) for part in torch.split(points_NE, 4096)]
        )
        sums_CE = torch.zeros_like(centres_CE).index_add_(0, labels_N, points_NE)
        counts_C = torch.bincount(labels_N, minlength=len(centres_CE))
        centres_CE = sums_CE[counts_C > 0] / counts_C[counts_C > 0, None]
        labels_N = (torch.cumsum(counts_C > 0, dim=0) - 1)[labels_N]
    dense: NDArray[np.int64] = labels_N.numpy()
    return dense


def _merge(
    points_NE: NDArray[np.float32],
    frequency_N: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    size: int,
    max_share: float,
) -> NDArray[np.int64]:
    """Merge each cluster that is too small, or dominated by one word, into its nearest until none is left."""
    count = int(labels_N.max()) + 1
    sums = np.zeros((count, points_NE.shape[1]))
    np.add.at(sums, labels_N, points_NE)
    members = np.bincount(labels_N, minlength=count).astype(np.float64)
    mass = np.bincount(labels_N, weights=frequency_N, minlength=count)
    top = np.zeros(count)
    np.maximum.at(top, labels_N, frequency_N)
    centres = sums / members[:, None]
    target = np.arange(count)
    alive = np.ones(count, dtype=bool)
    while alive.sum() > 1:
        badness = np.where(alive, np.maximum(size / members, top / mass / max_share), 0.0)
        worst = int(badness.argmax())
        if badness[worst] <= 1:
            break
        distance = np.square(centres - centres[worst]).sum(axis=1)
        distance[~alive] = np.inf
        distance[worst] = np.inf
        other = int(distance.argmin())
        target[target == worst] = other
        alive[worst] = False
        sums[other] += sums[worst]
        members[other] += members[worst]
        centres[other] = sums[other] / members[other]
        mass[other] += mass[worst]
        top[other] = max(top[other], top[worst])
    merged: NDArray[np.int64] = np.unique(target[labels_N], return_inverse=True)[1].astype(np.int64)
    return merged


def greedy_groups(unit_UD: Tensor, size: int, order_U: NDArray[np.int64], progress: OnProgress) -> NDArray[np.int64]:
    """CusText's output sets: the next free id in `order_U` with its size-1 nearest free ids, until none is left.

    Returns indices of shape (G, size); the last set is padded with -1.
    """
    free = torch.ones(len(unit_UD), dtype=torch.bool)
    groups: list[list[int]] = []
    for start in order_U.tolist():
        if not free[start]:
            continue
        rest = torch.nonzero(free).squeeze(1)
        similar = unit_UD[rest] @ unit_UD[start]
        chosen = rest[similar.topk(min(size, len(rest))).indices]
        free[chosen] = False
        groups.append(chosen.tolist() + [-1] * (size - len(chosen)))
        progress("output sets", 1 - len(rest) / len(unit_UD))
    return np.array(groups, dtype=np.int64)
