"""The accounting: closed forms against numerical integration, and properties that hold for any setting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from privtune.device.privacy import bounds as p
from privtune.device.privacy.pair_report import pair_report
from privtune.shared.errors import InvalidInput

positive = st.floats(1e-3, 1e3)
vectors = st.lists(st.floats(-50, 50), min_size=4, max_size=4).map(np.array)


@given(eta=positive, a=vectors, b=vectors, z=vectors)
def test_dchi_loss_bounds_the_log_ratio_of_densities_everywhere(
    eta: float, a: np.ndarray, b: np.ndarray, z: np.ndarray
) -> None:
    ratio = eta * (np.linalg.norm(z - b) - np.linalg.norm(z - a))
    assert abs(ratio) <= p.dchi_loss(eta, float(np.linalg.norm(a - b))) * (1 + 1e-9) + 1e-9


@given(eta=positive, clip=positive, a=vectors, b=vectors, z=vectors)
def test_clipped_positions_never_exceed_their_bound(
    eta: float, clip: float, a: np.ndarray, b: np.ndarray, z: np.ndarray
) -> None:
    a, b = (v * min(1.0, clip / max(np.linalg.norm(v), 1e-12)) for v in (a, b))
    ratio = eta * abs(np.linalg.norm(z - b) - np.linalg.norm(z - a))
    assert ratio <= p.position_bound(eta, clip) * (1 + 1e-9) + 1e-9


@given(eta=positive, clip=positive, n=st.integers(0, 500))
def test_composition_adds_up(eta: float, clip: float, n: int) -> None:
    assert p.compose_pure(p.position_bound(eta, clip), n) == pytest.approx(n * 2 * eta * clip)
    assert p.compose_mu(eta, n) == pytest.approx(eta * math.sqrt(n))


@given(eta=positive, gain=st.floats(0, 1), other=st.floats(0, 1), g=vectors, h=vectors, z=vectors)
def test_gain_importance_keeps_a_bound(
    eta: float, gain: float, other: float, g: np.ndarray, h: np.ndarray, z: np.ndarray
) -> None:
    ratio = eta * abs(np.linalg.norm(z - other * h) - np.linalg.norm(z - gain * g))
    moved = float(np.linalg.norm(gain * g - other * h))
    assert ratio <= p.dchi_loss(eta, moved) * (1 + 1e-9) + 1e-9


@given(epsilon=st.floats(0.01, 20), k=st.integers(2, 5000))
def test_randomised_response_is_exactly_its_epsilon(epsilon: float, k: int) -> None:
    keep = p.krr_keep_probability(epsilon, k)
    other = (1 - keep) / (k - 1)
    assert math.log(keep / other) == pytest.approx(epsilon, rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(eta=positive, clip=positive, size=st.integers(1, 8), z=vectors, data=st.data())
def test_sums_of_clipped_vectors_never_exceed_the_pooled_bound(
    eta: float, clip: float, size: int, z: np.ndarray, data: st.DataObject
) -> None:
    def pooled() -> list[np.ndarray]:
        drawn = [data.draw(vectors) for _ in range(size)]
        return [v * min(1.0, clip / max(np.linalg.norm(v), 1e-12)) for v in drawn]

    one, other = pooled(), pooled()
    a, b = (np.sum(vs, axis=0) / math.sqrt(size) for vs in (one, other))
    ratio = eta * abs(np.linalg.norm(z - b) - np.linalg.norm(z - a))
    assert ratio <= p.pooled_bound(eta, clip, size) * (1 + 1e-9) + 1e-9
    # One changed summand is bounded by its own figure.
    c = np.sum([other[0], *one[1:]], axis=0) / math.sqrt(size)
    single = eta * abs(np.linalg.norm(z - c) - np.linalg.norm(z - a))
    assert single <= p.dchi_loss(eta, 2 * clip / math.sqrt(size)) * (1 + 1e-9) + 1e-9


@given(scale=positive, clip=positive, a=vectors, b=vectors, z=vectors)
def test_laplace_on_clipped_vectors_keeps_its_bound(
    scale: float, clip: float, a: np.ndarray, b: np.ndarray, z: np.ndarray
) -> None:
    a, b = (v * min(1.0, clip / max(np.linalg.norm(v), 1e-12)) for v in (a, b))
    ratio = abs(np.abs(z - b).sum() - np.abs(z - a).sum()) / scale
    assert ratio <= p.laplace_bound(scale, clip, 4) * (1 + 1e-9) + 1e-9


def test_the_laplace_bound_is_reached_on_the_diagonal() -> None:
    corner = np.full(16, 0.5) / 2  # length 1
    loss = np.abs(2 * corner).sum() / 0.1
    assert loss == pytest.approx(p.laplace_bound(0.1, 1.0, 16))


@given(epsilon=st.floats(0.01, 50), words=st.integers(1, 100), data=st.data())
def test_replacing_a_record_moves_noised_counts_by_at_most_epsilon(
    epsilon: float, words: int, data: st.DataObject
) -> None:
    cells = st.sets(st.integers(0, 299), max_size=words)
    one, other = data.draw(cells), data.draw(cells)
    moved = len(one ^ other)
    assert moved / p.counts_scale(epsilon, words) <= epsilon * (1 + 1e-9)


@settings(deadline=None)
@given(epsilon=st.floats(0.01, 200), log_delta=st.floats(-25, -0.2), sensitivity=st.floats(1e-2, 1e2))
def test_gaussian_sigma_is_tight(epsilon: float, log_delta: float, sensitivity: float) -> None:
    delta = math.exp(log_delta)
    sigma = p.gaussian_sigma(epsilon, delta, sensitivity)
    assert p.gaussian_delta(epsilon, sigma, sensitivity) <= delta
    assert p.gaussian_delta(epsilon, sigma * 0.999, sensitivity) > delta


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0, 40.0])
def test_gaussian_delta_against_integration(epsilon: float) -> None:
    """delta(eps) = max over events of P(S) - e^eps Q(S), reached where the log-ratio is above eps."""
    sigma, sensitivity = 0.7, 2.0
    threshold = epsilon * sigma**2 / sensitivity + sensitivity / 2
    one, other = stats.norm(sensitivity, sigma), stats.norm(0, sigma)
    exact = one.sf(threshold) - math.exp(epsilon + other.logsf(threshold))
    assert p.gaussian_delta(epsilon, sigma, sensitivity) == pytest.approx(exact, rel=1e-6, abs=1e-14)


def test_analytic_sigma_beats_the_classic_one_below_1_and_differs_above() -> None:
    """The classic formula is loose for epsilon < 1 and WRONG (too little noise) for large epsilon."""
    delta = 1e-5

    def classic(epsilon: float) -> float:
        return math.sqrt(2 * math.log(1.25 / delta)) / epsilon

    assert p.gaussian_sigma(0.5, delta, 1.0) < classic(0.5)
    assert p.gaussian_sigma(50.0, delta, 1.0) > classic(50.0)
    assert p.gaussian_delta(50.0, classic(50.0), 1.0) > delta


@given(mu=st.floats(0.01, 30), log_delta=st.floats(-20, -1))
def test_gdp_round_trip(mu: float, log_delta: float) -> None:
    delta = math.exp(log_delta)
    epsilon = p.gdp_epsilon(mu, delta)
    assert p.gdp_delta(mu, epsilon) <= delta
    root = optimize.brentq(lambda e: p.gdp_delta(mu, e) - delta, 0, 2000) if p.gdp_delta(mu, 0) > delta else 0.0
    assert epsilon == pytest.approx(root, rel=1e-4, abs=1e-6)


def test_pair_report_is_ordered_and_scales() -> None:
    distances = np.linspace(0, 2, 101).reshape(1, 101)
    report = pair_report(distances, eta=3.0, dim=100)
    values = list(report.quantiles.values())
    assert values == sorted(values)
    assert report.worst == pytest.approx(6.0)
    assert report.quantiles["p50"] == pytest.approx(3.0)
    assert report.mu == pytest.approx(0.3)
    assert report.told_apart == pytest.approx(stats.norm.cdf(0.15))
    with pytest.raises(InvalidInput):
        pair_report(np.array([]), 1.0, 2)
    with pytest.raises(InvalidInput):
        pair_report(np.array([np.nan]), 1.0, 2)


def test_typical_mu_describes_the_loss() -> None:
    rng = np.random.default_rng(0)
    dim, eta, distance = 384, 10.0, 2.0
    z = rng.standard_normal((40_000, dim))
    z *= (rng.gamma(dim, 1 / eta, 40_000) / np.linalg.norm(z, axis=1))[:, None]
    moved = z.copy()
    moved[:, 0] += distance
    loss = eta * (np.linalg.norm(moved, axis=1) - np.linalg.norm(z, axis=1))
    mu = p.typical_mu(eta, distance, dim)
    assert loss.mean() == pytest.approx(mu**2 / 2, rel=0.05)
    assert loss.std() == pytest.approx(mu, rel=0.05)
    assert np.abs(loss).max() <= p.dchi_loss(eta, distance)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_nonsense_is_refused(value: float) -> None:
    for call in (p.dchi_loss, p.position_bound, p.dchi_eta, p.gaussian_mu):
        with pytest.raises(InvalidInput):
            call(value, value)
    with pytest.raises(InvalidInput):
        p.gaussian_sigma(1.0, value, 1.0)
