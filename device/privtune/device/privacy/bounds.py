"""Privacy accounting as plain maths: the loss of each kind of noise, and how losses compose.

Units. A loss is a log-ratio of probabilities (nats): how far one released vector may shift the odds between two
candidate inputs. Distances are Euclidean (L2) in the hidden space, at the injection point, after clipping. `eta` has
the unit 1 / distance. A "position" is one released vector, a "record" one text of n positions.

Neighbouring inputs differ in one position, which may hold any other token. Nothing here covers: the number of released
positions (it is visible), what the gradients that the device returns reveal about labels (the section on labels does,
where labels are randomised), what several records of one author reveal together, or anything learned from the private
records and published.

Sources: Feyisetan et al. 2020 (arXiv 1910.08902) for d_chi; Balle & Wang 2018 (arXiv 1805.06530) for the analytic
Gaussian; Dong, Roth & Su 2022 (arXiv 1905.02383) for mu; Kairouz et al. 2014 for k-ary randomised response;
Koufogiannis, Han & Pappas 2015 (arXiv 1504.00429) for gradual release.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from privtune.shared.errors import InvalidInput


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InvalidInput(f"{name} must be a positive finite number, not {value}", param=name)
    return value


def _not_negative(name: str, value: float) -> float:
    if math.isnan(value) or value < 0:
        raise InvalidInput(f"{name} must not be negative, and not {value}", param=name)
    return value


# --- d_chi -----------------------------------------------------------------------------------------------------------


def dchi_eta(dim: int, noise_norm: float) -> float:
    """The rate at which d_chi noise in `dim` coordinates has the expected norm `noise_norm`: eta = D / E||z||."""
    return _positive("dim", dim) / _positive("noise_norm", noise_norm)


def dchi_variance(eta: float, dim: int) -> float:
    """Variance of one coordinate of d_chi noise: E ||z||^2 / D = (D + 1) / eta^2, since ||z|| is Gamma(D, 1/eta)."""
    return (_positive("dim", dim) + 1) / _positive("eta", eta) ** 2


def dchi_loss(eta: float, distance: float) -> float:
    """Largest loss between two signals at L2 `distance` under density ~ exp(-eta ||z||): eta * distance.

    Pure, for one position and one release. Feyisetan et al. 2020, section 3. Not covered: two releases of the same
    position (add them), and a noise scale that depends on the secret: then the log-ratio grows without bound.
    """
    return _positive("eta", eta) * _not_negative("distance", distance)


def typical_mu(eta: float, distance: float, dim: int) -> float:
    """mu of the typical loss: for D well above eta * distance the loss is close to N(mu^2 / 2, mu^2).

    A description of what usually happens, not a bound: mu = eta * distance / sqrt(D), the square root of the Fisher
    information of exp(-eta ||z||) along any direction times the distance.
    """
    return dchi_loss(eta, distance) / math.sqrt(_positive("dim", dim))


def position_bound(eta: float, clip: float) -> float:
    """Pure bound of a position whose vector is clipped to L2 norm `clip` BEFORE d_chi noise: 2 * eta * clip."""
    return dchi_loss(eta, 2 * _positive("clip", clip))


def pooled_bound(eta: float, clip: float, size: int) -> float:
    """Pure bound of a released row: a sum of `size` vectors clipped to `clip`, over sqrt(size), under d_chi noise.

    Every summand may change, so the row lies in a ball of radius sqrt(size) * clip: 2 * eta * sqrt(size) * clip. One
    changed summand moves the row by at most 2 * clip / sqrt(size).
    """
    return position_bound(eta, clip * math.sqrt(_positive("size", size)))


# --- Laplace ---------------------------------------------------------------------------------------------------------


def laplace_bound(scale: float, clip: float, dim: int) -> float:
    """Pure bound of a position clipped to L2 norm `clip` before Laplace noise of this scale on each coordinate.

    L1 distance / scale (Dwork et al. 2006); an L2 ball of radius R has L1 diameter 2 * R * sqrt(D).
    """
    return 2 * _positive("clip", clip) * math.sqrt(_positive("dim", dim)) / _positive("scale", scale)


def counts_scale(epsilon: float, words: int) -> float:
    """Scale of Laplace noise on per-class counts of ids that makes them epsilon-private for replacing one record.

    A record counts at most `words` different ids, once each, under its class: replacing it changes the counts by at
    most 2 * words in L1, so the scale is 2 * words / epsilon (Dwork et al. 2006).
    """
    return 2 * _positive("words", words) / _positive("epsilon", epsilon)


# --- Gaussian --------------------------------------------------------------------------------------------------------


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_phi(x: float) -> float:
    """Log of the normal distribution function, including the far tail where it underflows (asymptotic series)."""
    if x > -30:
        return math.log(max(_phi(x), 5e-324))
    square = x * x
    return -0.5 * square - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log1p(-1 / square + 3 / square**2)


def gaussian_delta(epsilon: float, sigma: float, sensitivity: float) -> float:
    """Smallest delta at which N(0, sigma^2 I) on a value of this L2 sensitivity is (epsilon, delta)-private.

    Exact (Balle & Wang 2018, theorem 8): Phi(a - b) - e^eps Phi(-a - b), a = s / (2 sigma), b = eps sigma / s.
    """
    ratio = _positive("sensitivity", sensitivity) / _positive("sigma", sigma)
    a, b = ratio / 2, _not_negative("epsilon", epsilon) / ratio
    return max(0.0, _phi(a - b) - math.exp(epsilon + _log_phi(-a - b)))


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """Smallest standard deviation of each coordinate for (epsilon, delta), by bisection on `gaussian_delta`.

    Right for every epsilon, unlike sigma = sqrt(2 log(1.25 / delta)) s / eps, which is proved for epsilon < 1 only
    and is too small above. The result errs on the safe side, by a relative error below 1e-9.
    """
    _positive("epsilon", epsilon)
    if not 0 < delta < 1:
        raise InvalidInput(f"delta must be between 0 and 1, not {delta}", param="delta")
    low, high = 0.0, _positive("sensitivity", sensitivity)
    while gaussian_delta(epsilon, high, sensitivity) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(epsilon, middle, sensitivity) > delta else (low, middle)
    return high


def gaussian_mu(sensitivity: float, sigma: float) -> float:
    """mu of Gaussian differential privacy: sensitivity / sigma. Exact for the Gaussian mechanism."""
    return _not_negative("sensitivity", sensitivity) / _positive("sigma", sigma)


def gdp_delta(mu: float, epsilon: float) -> float:
    """delta at `epsilon` of a mu-GDP mechanism (Dong et al. 2022, corollary 1)."""
    return gaussian_delta(epsilon, 1.0, mu) if mu > 0 else 0.0


def gdp_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon at `delta` of a mu-GDP mechanism, by bisection on the safe side."""
    if not 0 < delta < 1:
        raise InvalidInput(f"delta must be between 0 and 1, not {delta}", param="delta")
    if mu == 0 or gdp_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gdp_delta(mu, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gdp_delta(mu, middle) > delta else (low, middle)
    return high


def distinguishing(mu: float) -> float:
    """How often the best test tells two equally likely inputs apart at this mu: Phi(mu / 2); 0.5 is a coin flip."""
    return _phi(_not_negative("mu", mu) / 2)


# --- randomised response ---------------------------------------------------------------------------------------------


def krr_keep_probability(epsilon: float, categories: int) -> float:
    """Probability that k-ary randomised response reports the true category of k: e^eps / (e^eps + k - 1)."""
    _positive("epsilon", epsilon)
    if categories < 2:
        raise InvalidInput("randomised response needs at least 2 categories", param="categories")
    return 1.0 / (1.0 + (categories - 1) * math.exp(-epsilon))


def label_truth(epsilon: float, classes: int) -> float:
    """Weight t of the truth when randomised response is a mixture: t * identity + (1 - t) * uniform.

    t = (e^eps - 1) / (e^eps - 1 + k). Two randomised responses in a row multiply their t.
    """
    if classes < 2:
        raise InvalidInput("randomised response needs at least 2 classes", param="classes")
    return 1.0 / (1.0 + classes / math.expm1(_positive("epsilon", epsilon)))


def label_distributions(
    truth: float,
    classes: int,
    nearer_N: NDArray[np.int64],
    nearer_truth_N: NDArray[np.float64],
    farther_N: NDArray[np.int64],
    farther_truth_N: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Distribution (N, C) of a randomised label, given a draw with more truth and one with less (gradual release).

    nearer: the label itself (truth 1), or the draw of the next larger epsilon.
    farther: the draw of the next smaller epsilon (truth 0 where there is none).

    All draws of a record then form a chain label -> largest -> ... -> smallest epsilon, each distributed as its own
    epsilon demands, so TOGETHER they cost the largest epsilon and not the sum, in whatever order they were drawn.
    """
    one_hot = np.eye(classes)
    up, down = (truth / nearer_truth_N)[:, None], (farther_truth_N / truth)[:, None]
    joint = (up * one_hot[nearer_N] + (1 - up) / classes) * (down * one_hot[farther_N] + (1 - down) / classes)
    chances_NC: NDArray[np.float64] = joint / joint.sum(axis=1, keepdims=True)
    return chances_NC


# --- composition -----------------------------------------------------------------------------------------------------


def compose_pure(epsilon: float, times: float) -> float:
    """Pure losses of independent releases add up: positions of a record, records of an author, fresh epochs.

    times: a release whose own loss is smaller counts as a part of one.
    """
    if times < 0:
        raise InvalidInput("a number of releases can't be negative", param="times")
    return 0.0 if times == 0 else _not_negative("epsilon", epsilon) * times


def compose_mu(mu: float, times: float) -> float:
    """mu of independent releases grows with the square root of their number; times as in `compose_pure`."""
    if times < 0:
        raise InvalidInput("a number of releases can't be negative", param="times")
    return _not_negative("mu", mu) * math.sqrt(times)
