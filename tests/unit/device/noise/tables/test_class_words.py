"""Words that indicate a class: counts find them, neighbours inherit scores, frequent words fall silent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from privtune.device.noise.params import SharedParams
from privtune.device.noise.randomness import NoiseSource, noise_source
from privtune.device.noise.tables.class_words import class_groups, class_scores, graded_groups, public_counts
from privtune.device.noise.tables.cluster_targets import ClusterTargets
from privtune.device.noise.tables.private_counts import LabelledRows, PrivateCounts
from privtune.device.privacy.bounds import counts_scale
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.partition import Bottom
from tests.support.noise_contexts import tiny_context

WORDS = 600


def test_words_that_indicate_a_class_are_found_and_chance_is_not(seeded: NoiseSource) -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(40, size=(2, 500)).astype(float)
    counts[0, :20] += 80
    counts[1, 20:40] += 80
    groups = class_groups(counts, significance=4.0)
    assert (groups[:20] == 1).all()
    assert (groups[20:40] == 2).all()
    assert (groups[40:] == 0).mean() > 0.98
    # Pure noise of known variance makes (almost) no word indicate a class.
    scale = counts_scale(0.5, 8)
    noise = seeded.laplace(scale, 2, 5000).numpy()
    assert (class_groups(noise + 5, 2 * scale**2, significance=4.0) > 0).mean() < 0.01
    assert not class_groups(counts[:1], significance=2.0).any()


def test_public_counts_count_texts_by_class(bottom: Bottom) -> None:
    context = tiny_context(bottom, labelled_rows=[[2, 50, 50, 3], [2, 50, 51, 3], [2, 51, 3]], labels=[0, 1, 1])
    place = np.full(120, -1)
    place[context.usable_ids.numpy()] = np.arange(len(context.usable_ids))
    counts = public_counts(context, place)
    assert counts[:, place[50]].tolist() == [1, 1]
    assert counts[:, place[51]].tolist() == [0, 2]
    assert counts.sum() == 4


@pytest.fixture
def counts() -> tuple[np.ndarray, torch.Tensor]:
    """Words 0..199 indicate class 0, 200..399 class 1, and so do embeddings; every other word is uncounted."""
    rng = np.random.default_rng(0)
    lean = np.repeat([1.0, -1.0, 0.0], 200)
    counts_CU = np.stack([rng.poisson(20 * (1 + side * 0.8 * lean)) for side in (1, -1)]).astype(float)
    counts_CU[:, 1::2] = 0.0
    unit_UD = torch.from_numpy(rng.normal(size=(WORDS, 16))).float()
    unit_UD[:, 0] += torch.from_numpy(lean * 4).float()
    return counts_CU, torch.nn.functional.normalize(unit_UD, dim=1)


def test_scores_follow_counts_and_neighbours(counts: tuple[np.ndarray, torch.Tensor]) -> None:
    scores_CU = class_scores(counts[0], 0.0, counts[1])
    assert scores_CU[0, :200:2].min() > 0.2 > -0.2 > scores_CU[0, 200:400:2].max()
    # Never counted: scored by what their embeddings share with counted words.
    assert (scores_CU[0, 1:200:2] > 0).mean() > 0.95
    assert (scores_CU[0, 201:400:2] < 0).mean() > 0.95
    assert np.abs(scores_CU[0, 401::2]).mean() < np.abs(scores_CU[0, 1:200:2]).mean() / 2


def test_noised_counts_are_trusted_less(counts: tuple[np.ndarray, torch.Tensor]) -> None:
    noisy = np.random.default_rng(1).laplace(0, 30, size=counts[0].shape)
    trusting = class_scores(counts[0] + noisy, 0.0, counts[1])
    wary = class_scores(counts[0] + noisy, 2 * 30**2, counts[1])
    truth = np.repeat([1, -1], 200)
    assert (np.sign(wary[0, :400]) == truth).mean() > (np.sign(trusting[0, :400]) == truth).mean()


def test_grades_share_a_class_evenly_and_never_mix_classes() -> None:
    rng = np.random.default_rng(2)
    score = rng.normal(size=WORDS)
    frequency = rng.pareto(1.2, size=WORDS) + 0.01
    groups = graded_groups(np.stack([score, -score]), frequency, grades=4)
    assert groups.max() == 7
    assert all(len(set(np.sign(score[groups == group]))) == 1 for group in range(8))
    mass = np.bincount(groups, weights=np.sqrt(frequency))
    assert mass.max() / mass.min() < 3
    loudest = groups[score.argmax()]
    assert score[groups == loudest].min() >= np.quantile(score[score > 0], 0.4)


def test_frequent_words_are_silent_unless_loud() -> None:
    score = np.full(WORDS, 0.1)
    score[:2] = [5.0, 0.1]
    frequency = np.arange(WORDS, 0, -1).astype(float)
    groups = graded_groups(np.stack([score, -score]), frequency, grades=2, silent=50)
    assert len(set(groups[1:50].tolist())) == 1
    assert groups[0] != groups[1]


def graded(bottom: Bottom, folder: Path, classes: int = 2, **params: object) -> ClusterTargets:
    rows = [np.array([2, 10 + i % 20, 3], dtype=np.int32) for i in range(300)]
    rows += [np.array([2, 60 + i % 20, 3], dtype=np.int32) for i in range(300)]
    records = LabelledRows(rows=rows, labels=np.repeat([0, 1], 300), classes=classes)
    context = tiny_context(
        bottom,
        private_counts=PrivateCounts(folder=folder, fingerprint="x", source=noise_source(), records=records),
        labelled_rows=[[2, 30, 3], [2, 80, 3]] * 20,
        labels=[0, 1] * 20,
        cache=folder / "tables",
    )
    settings = SharedParams.model_validate({"grades": 3, "silent": 0, "count_words": 1, "epsilon_counts": 20, **params})
    return ClusterTargets(settings, context, "embedding")


def test_both_sources_together(bottom: Bottom, tmp_path: Path) -> None:
    targets = graded(bottom, tmp_path, groups="both")
    cluster_V = targets.cluster_V
    first, second = set(cluster_V[[*range(10, 30), 30]].tolist()), set(cluster_V[[*range(60, 80), 80]].tolist())
    assert not first & second
    assert targets.count <= 6
    assert targets.fitted_epsilon == 20.0
    assert graded(bottom, tmp_path, groups="public").fitted_epsilon == 0.0
    with pytest.raises(InvalidInput, match="the same classes"):
        graded(bottom, tmp_path / "three", classes=3, groups="both").count  # noqa: B018


def test_grades_need_classes() -> None:
    with pytest.raises(ValidationError, match="set groups"):
        SharedParams(grades=4)
