"""Clusters: their sizes, their balance by frequency, and groups that never share one; CusText's output sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from privtune.device.noise.tables.clustering import greedy_groups, make_clusters
from privtune.device.noise.tables.graph import centred

COUNT = 900


@pytest.fixture(scope="module")
def points_UD() -> torch.Tensor:
    return centred(torch.randn(COUNT, 12, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(("size", "max_share"), [(10, 1.0), (30, 0.5), (5, 0.3)])
def test_every_cluster_is_large_enough_and_no_word_dominates(
    points_UD: torch.Tensor, size: int, max_share: float
) -> None:
    frequency = 1 / (np.arange(COUNT) + 10.0)
    labels = make_clusters(points_UD, frequency, size=size, max_share=max_share, frequency_weight=0.3)
    assert set(labels) == set(range(labels.max() + 1))
    assert labels.max() > 0
    for cluster in range(labels.max() + 1):
        inside = frequency[labels == cluster]
        assert len(inside) >= size
        assert inside.max() / inside.sum() <= max_share


def test_frequency_weight_makes_members_alike_in_frequency(points_UD: torch.Tensor) -> None:
    frequency = 1 / (np.random.default_rng(0).permutation(COUNT) + 1.0)

    def spread(weight: float) -> float:
        labels = make_clusters(points_UD, frequency, size=10, max_share=1.0, frequency_weight=weight)
        return float(np.mean([np.log(frequency[labels == c]).std() for c in range(labels.max() + 1)]))

    assert spread(5.0) < 0.5 * spread(0.0)


def test_groups_never_share_a_cluster_and_have_their_own_size(points_UD: torch.Tensor) -> None:
    groups = np.arange(COUNT) % 3
    labels = make_clusters(
        points_UD,
        np.ones(COUNT),
        size=40,
        max_share=1.0,
        frequency_weight=0.0,
        groups_U=groups,
        group_sizes={1: 10, 2: 20},
    )
    sizes = np.bincount(labels)
    for cluster in range(len(sizes)):
        inside = set(groups[labels == cluster])
        assert len(inside) == 1
        assert sizes[cluster] >= {0: 40, 1: 10, 2: 20}[inside.pop()]


def test_custext_sets_hold_each_id_once_the_frequent_first(points_UD: torch.Tensor) -> None:
    order = np.arange(COUNT)[::-1].copy()
    sets = greedy_groups(points_UD, 7, order, lambda what, share: None)
    assert sorted(sets[sets >= 0].tolist()) == list(range(COUNT))
    first = points_UD @ points_UD[COUNT - 1]
    assert set(sets[0]) == set(first.topk(7).indices.tolist())
