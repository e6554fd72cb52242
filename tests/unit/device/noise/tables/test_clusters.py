"""Clusters: sizes, balance by frequency, groups kept apart; which words speak for a class; noised private counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from privtune.device.noise.randomness import NoiseSource, noise_source
from privtune.device.noise.tables.clusters import greedy_groups, make_clusters
from privtune.device.noise.tables.graph import centred
from privtune.device.noise.tables.private_counts import LabelledRows, PrivateCounts, bounded_counts
from privtune.device.noise.tables.word_statistics import frequencies, public_counts, speaking_groups
from privtune.device.privacy.bounds import counts_scale
from privtune.shared.errors import JobConflict
from privtune.shared.modeling.partition import Bottom
from tests.support.noise_contexts import tiny_context

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


def test_groups_never_meet_and_have_their_own_size(points_UD: torch.Tensor) -> None:
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


def test_speaking_words_are_found_and_chance_is_not(seeded: NoiseSource) -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(40, size=(2, 500)).astype(float)
    counts[0, :20] += 80
    counts[1, 20:40] += 80
    groups = speaking_groups(counts, significance=4.0)
    assert (groups[:20] == 1).all()
    assert (groups[20:40] == 2).all()
    assert (groups[40:] == 0).mean() > 0.98
    # Pure noise of known variance makes (almost) nobody speak.
    scale = counts_scale(0.5, 8)
    noise = seeded.laplace(scale, 2, 5000).numpy()
    assert (speaking_groups(noise + 5, 2 * scale**2, significance=4.0) > 0).mean() < 0.01
    assert not speaking_groups(counts[:1], significance=2.0).any()


def test_frequencies_follow_the_public_text_then_the_vocabulary(bottom: Bottom) -> None:
    context = tiny_context(bottom, public_rows=[[2, 50, 50, 50, 60, 3], [2, 50, 3]])
    place = np.full(120, -1)
    place[context.usable_ids.numpy()] = np.arange(len(context.usable_ids))
    frequency = frequencies(context, place)
    assert frequency.sum() == pytest.approx(1.0)
    assert frequency.min() > 0
    assert frequency[place[50]] > frequency[place[60]] > frequency[place[61]]


def test_public_counts_count_texts_by_class(bottom: Bottom) -> None:
    context = tiny_context(bottom, labelled_rows=[[2, 50, 50, 3], [2, 50, 51, 3], [2, 51, 3]], labels=[0, 1, 1])
    place = np.full(120, -1)
    place[context.usable_ids.numpy()] = np.arange(len(context.usable_ids))
    counts = public_counts(context, place)
    assert counts[:, place[50]].tolist() == [1, 1]
    assert counts[:, place[51]].tolist() == [0, 2]
    assert counts.sum() == 4


def labelled(rows: list[list[int]], labels: list[int]) -> LabelledRows:
    return LabelledRows(
        rows=[np.array(row, dtype=np.int32) for row in rows], labels=np.array(labels, dtype=np.int64), classes=2
    )


def test_a_record_adds_a_bounded_number_of_words() -> None:
    usable = torch.arange(5, 50)
    long, short = list(range(60)), [7, 7, 7, 200]
    counts = bounded_counts(labelled([long, short], [0, 1]), usable, 4, noise_source())
    assert counts[0].sum() == 4
    assert counts[1].nonzero().squeeze(1).tolist() == [2]
    assert counts[1].sum() == 1
    picks = [bounded_counts(labelled([long], [0]), usable, 4, noise_source())[0] for _ in range(20)]
    assert sum(picks).gt(0).sum() > 20  # a fresh random choice, not always the first words


def test_replacing_a_record_moves_the_counts_by_no_more_than_the_noise_is_made_for() -> None:
    usable, words = torch.arange(5, 50), 4
    one = bounded_counts(labelled([list(range(5, 25))], [0]), usable, words, noise_source())
    other = bounded_counts(labelled([list(range(25, 45))], [1]), usable, words, noise_source())
    assert float((one - other).abs().sum()) == 2 * words == pytest.approx(counts_scale(0.5, words) * 0.5)


def test_counts_are_noised_once_and_kept(tmp_path: Path) -> None:
    usable = torch.arange(5, 3000)
    records = labelled([[10, 11], [10, 12]], [0, 1])
    made = PrivateCounts(folder=tmp_path, fingerprint="d", source=noise_source(), records=records)
    counts, variance = made(usable, 0.5, 4)
    again, _ = made(usable, 0.5, 4)
    assert np.array_equal(counts, again)
    later = PrivateCounts(folder=tmp_path, fingerprint="d", source=noise_source())
    assert np.array_equal(later(usable, 0.5, 4)[0], counts)
    with pytest.raises(JobConflict, match="not on this device"):
        later(usable, 0.25, 4)
    assert not np.array_equal(made(usable, 1.0, 4)[0], counts)
    exact = np.zeros((2, len(usable)))
    exact[[0, 0, 1, 1], [5, 6, 5, 7]] = 1
    scale = counts_scale(0.5, 4)
    assert variance == 2 * scale**2
    assert stats.kstest((counts - exact).ravel(), stats.laplace(scale=scale).cdf).pvalue > 1e-4
