"""What may be claimed for a release: the accounting as plain maths, and the statement that an owner reads.

Units. A loss is a log-ratio of probabilities (nats): how much one released vector may shift the odds between two
candidate inputs. Distances are Euclidean (L2) in the hidden space, at the injection point, after clipping. `eta` has
the unit 1 / distance. A "position" is one released vector, a "record" one text of n positions.

Everything here treats one position's neighbours as "any other token in its place". Nothing here covers: the number of
released positions (it is visible), what the gradients that the device returns say about labels (the section on labels
does, where they are randomised), what several records of one author say together, or anything that was learned from the
private records and published.

Sources: Feyisetan et al. 2020 (arXiv 1910.08902) for d_chi; Balle & Wang 2018 (arXiv 1805.06530) for the analytic
Gaussian; Dong, Roth & Su 2022 (arXiv 1905.02383) for mu; Kairouz et al. 2014 for k-ary randomised response;
Koufogiannis, Han & Pappas 2015 (arXiv 1504.00429) for gradual release.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from privtune.shared.errors import InvalidInput

Row = Literal[
    "none", "metric", "clipped", "unclipped", "scale", "gain", "cluster", "randomised", "fitted", "gaussian", "laplace"
]
Guarantee = Literal["none", "metric", "pure", "approximate"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


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
    """The noise rate at which d_chi noise in `dim` coordinates has the expected norm `noise_norm`: eta = D / E||z||."""
    return _positive("dim", dim) / _positive("noise_norm", noise_norm)


def dchi_variance(eta: float, dim: int) -> float:
    """Variance of one coordinate of d_chi noise: E ||z||^2 / D = (D + 1) / eta^2, its length being Gamma(D, 1/eta)."""
    return (_positive("dim", dim) + 1) / _positive("eta", eta) ** 2


def dchi_loss(eta: float, distance: float) -> float:
    """Largest loss between two signals at L2 `distance` under density ~ exp(-eta ||z||): eta * distance.

    Pure, for one position and one release. Feyisetan et al. 2020, section 3. Not covered: two releases of the same
    position (add them), and a scale that itself depends on the secret (see `scale_loss`).
    """
    return _positive("eta", eta) * _not_negative("distance", distance)


def typical_mu(eta: float, distance: float, dim: int) -> float:
    """mu of the typical loss: for D well above eta * distance the loss is close to N(mu^2 / 2, mu^2).

    A description of what usually happens, not a bound: mu = eta * distance / sqrt(D), the square root of the Fisher
    information of exp(-eta ||z||) along any direction times the distance.
    """
    return dchi_loss(eta, distance) / math.sqrt(_positive("dim", dim))


def position_bound(eta: float, clip: float) -> float:
    """Pure bound of a position whose vector was clipped to L2 norm `clip` BEFORE d_chi noise: 2 * eta * clip."""
    return dchi_loss(eta, 2 * _positive("clip", clip))


def record_bound(eta: float, clip: float, positions: int) -> float:
    """Pure bound of a record of n clipped positions, every one of which may change: n * 2 * eta * clip."""
    return compose_pure(position_bound(eta, clip), positions)


def gain_loss(eta: float, gain: float, signal: NDArray[Any], gain_other: float, signal_other: NDArray[Any]) -> float:
    """Largest loss when the SIGNAL is scaled by an importance and the noise stays equal: eta * ||a g - a' g'||.

    Pure, because the noise's law is the same for every input. Not covered: an importance fitted on private records.
    """
    moved = np.asarray(gain, float) * np.asarray(signal, float)
    other = np.asarray(gain_other, float) * np.asarray(signal_other, float)
    return dchi_loss(eta, float(np.linalg.norm(moved - other)))


def scale_loss(eta: float, scale: float, scale_other: float) -> float:
    """Largest loss when the NOISE is scaled by a secret-dependent importance: infinite unless the scales agree.

    With densities ~ exp(-eta ||z|| / s) the log-ratio grows like eta * (1/s' - 1/s) * ||z|| without end. At equal
    scales nothing is added to `dchi_loss`.
    """
    _positive("eta", eta)
    return 0.0 if _positive("scale", scale) == _positive("scale_other", scale_other) else math.inf


# --- clusters --------------------------------------------------------------------------------------------------------


def krr_keep_probability(epsilon: float, categories: int) -> float:
    """Chance of k-ary randomised response to report the true one of k categories: e^eps / (e^eps + k - 1)."""
    _positive("epsilon", epsilon)
    if categories < 2:
        raise InvalidInput("randomised response needs at least 2 categories", param="categories")
    return 1.0 / (1.0 + (categories - 1) * math.exp(-epsilon))


def randomised_loss(epsilon: float, eta: float | None = None, within: float = 0.0) -> float:
    """Loss of a randomised cluster followed by a target of that cluster: eps_c + eta * within.

    `within`: largest L2 distance between the targets that two tokens may have once the reported cluster is the same;
    0 where the target is drawn without looking at the token. Needs noise (`eta`) if `within` is not 0.
    """
    if _not_negative("within", within) == 0:
        return _positive("epsilon", epsilon)
    return math.inf if eta is None else _positive("epsilon", epsilon) + dchi_loss(eta, within)


def cluster_loss(same_cluster: bool, eta: float | None = None, w_inf: float = math.inf) -> float:
    """Loss of a target shared by a whole cluster: 0 inside; across, eta * W_inf of the two mixtures (infinite
    without noise). A loss of 0 inside says nothing about WHICH cluster it was: that is shown.
    """
    if same_cluster:
        return 0.0
    return math.inf if eta is None else dchi_loss(eta, w_inf)


def pooled_bound(eta: float, clip: float, size: int) -> float:
    """Pure bound of a released row: a sum of `size` vectors clipped to `clip`, over sqrt(size), under d_chi noise.

    Every summand may change, so the row lies in a ball of radius sqrt(size) * clip: 2 * eta * sqrt(size) * clip. One
    changed summand moves the row by 2 * clip / sqrt(size) only.
    """
    return position_bound(eta, clip * math.sqrt(_positive("size", size)))


def counts_scale(epsilon: float, words: int) -> float:
    """Scale of Laplace noise on per-class counts of ids that makes them epsilon-private for replacing one record.

    A record counts at most `words` different ids, once each, under its class: replacing it changes the counts by at
    most 2 * words in L1, so the scale is 2 * words / epsilon (Dwork et al. 2006).
    """
    return 2 * _positive("words", words) / _positive("epsilon", epsilon)


def laplace_bound(scale: float, clip: float, dim: int) -> float:
    """Pure bound of a position clipped to L2 norm `clip` before Laplace noise of this scale a coordinate.

    L1 distance / scale (Dwork et al. 2006); an L2 ball of radius R has L1 diameter 2 * R * sqrt(D).
    """
    return 2 * _positive("clip", clip) * math.sqrt(_positive("dim", dim)) / _positive("scale", scale)


# --- labels ----------------------------------------------------------------------------------------------------------


def label_truth(epsilon: float, classes: int) -> float:
    """Chance t that randomised response tells the truth without rolling its die: t * identity + (1 - t) * uniform.

    t = (e^eps - 1) / (e^eps - 1 + k). Two randomised responses in a row multiply their t.
    """
    if classes < 2:
        raise InvalidInput("randomised response needs at least 2 classes", param="classes")
    return 1.0 / (1.0 + classes / math.expm1(_positive("epsilon", epsilon)))


def label_laws(
    truth: float,
    classes: int,
    nearer_N: NDArray[np.int64],
    nearer_truth_N: NDArray[np.float64],
    farther_N: NDArray[np.int64],
    farther_truth_N: NDArray[np.float64],
) -> NDArray[np.float64]:
    """law_NC of a randomised label between one that was drawn with more truth and one with less (gradual release).

    nearer: the label itself (truth 1), or the draw of the next larger epsilon; farther: that of the next smaller one
    (truth 0 where there is none). All draws of a record then form a chain label -> largest -> ... -> smallest epsilon,
    each with the law of its own epsilon, so TOGETHER they cost the largest epsilon and not the sum, in whatever order
    they were drawn.
    """
    one_hot = np.eye(classes)
    up, down = (truth / nearer_truth_N)[:, None], (farther_truth_N / truth)[:, None]
    joint = (up * one_hot[nearer_N] + (1 - up) / classes) * (down * one_hot[farther_N] + (1 - down) / classes)
    law_NC: NDArray[np.float64] = joint / joint.sum(axis=1, keepdims=True)
    return law_NC


# --- Gaussian --------------------------------------------------------------------------------------------------------


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_phi(x: float) -> float:
    """log of the normal distribution function, also far out where it underflows (asymptotic series)."""
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
    """Smallest standard deviation a coordinate for (epsilon, delta), by bisection on `gaussian_delta`.

    Right for every epsilon, unlike sigma = sqrt(2 log(1.25 / delta)) s / eps, which is proved for epsilon < 1 only
    and is too small above. The answer errs on the safe side by less than 1e-9 of itself.
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
    """How often the best test tells two equally likely inputs apart at this mu: Phi(mu / 2), 0.5 is a coin."""
    return _phi(_not_negative("mu", mu) / 2)


# --- composition -----------------------------------------------------------------------------------------------------


def compose_pure(epsilon: float, times: int) -> float:
    """Pure losses of independent releases add up: positions of a record, records of an author, fresh epochs."""
    if times < 0:
        raise InvalidInput("a number of releases can't be negative", param="times")
    return 0.0 if times == 0 else _not_negative("epsilon", epsilon) * times


def compose_mu(mu: float, times: int) -> float:
    """mu of independent releases grows by the square root of their number."""
    if times < 0:
        raise InvalidInput("a number of releases can't be negative", param="times")
    return _not_negative("mu", mu) * math.sqrt(times)


def draws(epochs: int, once_per_record: bool) -> int:
    """Independent releases of a record over a job: one if its release is drawn once, else one an epoch."""
    if epochs < 1:
        raise InvalidInput("a job has at least one epoch", param="epochs")
    return 1 if once_per_record else epochs


# --- distances over neighbour pairs ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """d_g over neighbour pairs of the public tables: what the metric guarantee means in figures.

    quantiles: loss (nats) at 5, 25, 50, 75 and 95 % of the pairs; worst: the largest over the pairs that were
    measured; mu: typical loss at the median pair; told_apart: how often the best test tells a median pair apart.
    """

    pairs: int
    quantiles: dict[str, float]
    worst: float
    mu: float
    told_apart: float


def pair_report(distances: NDArray[Any], eta: float, dim: int) -> PairReport:
    """Turn L2 distances of neighbour pairs (any shape, finite) into losses under d_chi noise of rate `eta`."""
    flat = np.asarray(distances, dtype=np.float64).ravel()
    if flat.size == 0 or not np.isfinite(flat).all() or flat.min() < 0:
        raise InvalidInput("neighbour distances must be a non-empty set of finite numbers >= 0", param="distances")
    at = np.quantile(flat, QUANTILES)
    mu = typical_mu(eta, float(at[QUANTILES.index(0.5)]), dim)
    return PairReport(
        pairs=int(flat.size),
        quantiles={f"p{int(100 * q)}": dchi_loss(eta, float(d)) for q, d in zip(QUANTILES, at, strict=True)},
        worst=dchi_loss(eta, float(flat.max())),
        mu=mu,
        told_apart=distinguishing(mu),
    )


# --- the statement ---------------------------------------------------------------------------------------------------

ALWAYS = (
    "The cloud sees how many vectors each record has.",
    "Gradients that training sends back give labels away (a language model's labels are its text), unless "
    "label_epsilon bounds it or a tail keeps every gradient on the device.",
    "The bound is for one release of a record; it adds up if the record is released again under other settings.",
    "Computed in floating point: the ideal real-valued distributions are approximated.",
)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What may be claimed for a mechanism as it is configured: one row of the table, and nothing stronger.

    row: which row applies. guarantee: "pure" (a finite worst-case loss), "metric" (pure, but a loss in proportion to a
    distance for which no largest value is known), "approximate" (holds but for delta), "none".
    text: the claim in plain language. numbers: figures behind it; a figure that is infinite or unknown is absent.
    position_epsilon: worst-case loss of a position, None if there is none; position_mu: its mu (typical loss under
    d_chi, exact under Gaussian noise).
    fitted_epsilon: what tables fitted on the private records (with noise of their own) cost each record, once a data
    set, on top of the releases; the text says so.
    unsafe_seed: the noise came from a fixed seed, so NOTHING is claimed.
    """

    mechanism: str
    row: Row
    guarantee: Guarantee
    injection: str
    text: str
    numbers: dict[str, float] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    position_epsilon: float | None = None
    position_mu: float | None = None
    delta: float = 0.0
    fitted_epsilon: float = 0.0
    unsafe_seed: bool = False

    def __post_init__(self) -> None:
        finite = self.position_epsilon is not None and math.isfinite(self.position_epsilon)
        if self.guarantee in ("pure", "approximate") and not finite:
            raise InvalidInput(f"a guarantee of kind {self.guarantee} needs a finite loss")
        if self.guarantee in ("none", "metric") and self.position_epsilon is not None:
            raise InvalidInput(f"a guarantee of kind {self.guarantee} can't name a worst-case loss")
        if any(not math.isfinite(value) for value in self.numbers.values()):
            raise InvalidInput("a statement's numbers must be finite")

    def record_epsilon(self, positions: int, releases: int = 1) -> float | None:
        """Worst-case loss of a whole record of n positions, released so many times; None where nothing is claimed.

        For the approximate guarantee it is at the statement's delta for the whole record, by mu composition. What
        fitted tables cost is added.
        """
        if self.unsafe_seed or self.position_epsilon is None:
            return None
        if self.guarantee == "pure":
            return self.fitted_epsilon + compose_pure(self.position_epsilon, positions * releases)
        if self.position_mu is None:
            return None
        return self.fitted_epsilon + gdp_epsilon(compose_mu(self.position_mu, positions * releases), self.delta)

    def marked_unsafe(self) -> Statement:
        """The same mechanism with a fixed seed: every claim is withdrawn."""
        return replace(
            self,
            guarantee="none",
            position_epsilon=None,
            position_mu=None,
            fitted_epsilon=0.0,
            unsafe_seed=True,
            text=f"FIXED SEED, TESTS ONLY: whoever knows the seed removes the noise. Nothing is claimed. ({self.text})",
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "caveats": list(self.caveats)}

    def lines(self) -> list[str]:
        """For a terminal: the claim, then each caveat."""
        return [self.text, *(f"- {caveat}" for caveat in self.caveats)]
