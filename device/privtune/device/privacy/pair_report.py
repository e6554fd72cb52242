"""A metric guarantee in figures: the loss between neighbouring tokens of the public tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.privacy.bounds import dchi_loss, distinguishing, typical_mu
from privtune.shared.errors import InvalidInput

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """d_g over neighbour pairs of the public tables.

    quantiles: loss (nats) at 5, 25, 50, 75 and 95 % of the pairs, by name ("p5" ...).
    worst: the largest loss over the measured pairs.
    mu: typical loss at the median pair.
    told_apart: how often the best test tells a median pair apart.
    """

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
        quantiles={f"p{int(100 * q)}": dchi_loss(eta, float(d)) for q, d in zip(QUANTILES, at, strict=True)},
        worst=dchi_loss(eta, float(flat.max())),
        mu=mu,
        told_apart=distinguishing(mu),
    )
