"""Estimate the privacy loss of a real sampler from samples of it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BINS = 30
_SURE = 1e-5  # an estimate exceeds the truth with at most this probability per bin


def certain_loss(score: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """A loss that the sampler certainly has: the largest log-ratio of bin frequencies, at exact 99.999% limits.

    score, other: one real statistic of releases under two inputs. It is below the true worst loss (up to chance), so
    a claimed bound below it is wrong.
    """
    edges = np.quantile(np.concatenate([score, other]), np.linspace(0, 1, BINS + 1))
    edges[0], edges[-1] = -np.inf, np.inf
    counts = [np.histogram(values, edges)[0] for values in (score, other)]
    worst = 0.0
    for a, b in (counts, counts[::-1]):
        for inside, outside in zip(a, b, strict=True):
            least = stats.beta.ppf(_SURE, inside, len(score) - inside + 1) if inside else 0.0
            most = stats.beta.ppf(1 - _SURE, outside + 1, len(other) - outside) if outside < len(other) else 1.0
            worst = max(worst, math.log(max(least, 1e-300) / most))
    return worst


def certain_loss_of_counts(counts: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """The same for a discrete release: counts of each outcome under two inputs."""
    worst = 0.0
    for a, b in ((counts, other), (other, counts)):
        for inside, outside in zip(a, b, strict=True):
            least = stats.beta.ppf(_SURE, inside, a.sum() - inside + 1) if inside else 0.0
            most = stats.beta.ppf(1 - _SURE, outside + 1, b.sum() - outside) if outside < b.sum() else 1.0
            worst = max(worst, math.log(max(least, 1e-300) / most))
    return worst
