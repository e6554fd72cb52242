"""Private word counts: bounded, noised once, and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from privtune.device.noise.randomness import noise_source
from privtune.device.noise.tables.private_counts import LabelledRows, PrivateCounts, bounded_counts
from privtune.device.privacy.bounds import counts_scale
from privtune.shared.errors import JobConflict


def labelled(rows: list[list[int]], labels: list[int]) -> LabelledRows:
    return LabelledRows(
        rows=[np.array(row, dtype=np.int32) for row in rows], labels=np.array(labels, dtype=np.int64), classes=2
    )


def test_a_record_adds_a_bounded_number_of_words() -> None:
    usable = torch.arange(5, 50)
    long, short = list(range(60)), [7, 7, 7, 200]
    counts, added_N = bounded_counts(labelled([long, short], [0, 1]), usable, 4, noise_source())
    assert counts[0].sum() == 4
    assert counts[1].nonzero().squeeze(1).tolist() == [2]
    assert counts[1].sum() == 1
    assert added_N.tolist() == [4, 1]
    picks = [bounded_counts(labelled([long], [0]), usable, 4, noise_source())[0][0] for _ in range(20)]
    assert sum(picks).gt(0).sum() > 20  # a fresh random choice, not always the first words


def test_replacing_a_record_moves_the_counts_by_no_more_than_the_noise_is_made_for() -> None:
    usable, words = torch.arange(5, 50), 4
    one, _ = bounded_counts(labelled([list(range(5, 25))], [0]), usable, words, noise_source())
    other, _ = bounded_counts(labelled([list(range(25, 45))], [1]), usable, words, noise_source())
    assert float((one - other).abs().sum()) == 2 * words == pytest.approx(counts_scale(0.5, words) * 0.5)


def test_shares_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    records = replace(labelled([[10], [10, 12], [5, 6, 7, 8]], [0, 1, 1]), places=(2, 0, 1))
    counts = PrivateCounts(folder=tmp_path, fingerprint="d", source=noise_source(), records=records)
    assert counts.shares(torch.arange(5, 30), 0.5, 4).tolist() == [0.75, 1.0, 0.625]


def test_counts_are_noised_once_and_kept(tmp_path: Path) -> None:
    usable = torch.arange(5, 3000)
    records = labelled([[10, 11], [10, 12]], [0, 1])
    made = PrivateCounts(folder=tmp_path, fingerprint="d", source=noise_source(), records=records)
    counts, variance = made(usable, 0.5, 4)
    again, _ = made(usable, 0.5, 4)
    assert np.array_equal(counts, again)
    later = PrivateCounts(folder=tmp_path, fingerprint="d", source=noise_source())
    assert np.array_equal(later(usable, 0.5, 4)[0], counts)
    assert later.shares(usable, 0.5, 4).tolist() == [0.75, 0.75]  # two words of four: it moved (2 + 4) / 8 at most
    with pytest.raises(JobConflict, match="not on this device"):
        later(usable, 0.25, 4)
    assert not np.array_equal(made(usable, 1.0, 4)[0], counts)
    exact = np.zeros((2, len(usable)))
    exact[[0, 0, 1, 1], [5, 6, 5, 7]] = 1
    scale = counts_scale(0.5, 4)
    assert variance == 2 * scale**2
    assert stats.kstest((counts - exact).ravel(), stats.laplace(scale=scale).cdf).pvalue > 1e-4
