"""Gaussian noise, whole or of bounded support (Hu et al. 2024, arXiv 2403.05598), for vectors and for aggregates.

The support is a public box, [-A, A] on each coordinate, THE SAME for every input:
* rectified: a noised coordinate outside the box is moved to its nearer end.
* truncated: each coordinate has the Gaussian law around its own value, given that it falls into the box.

Worst case: that of the whole Gaussian, mu = distance / sigma, for both. Rectified is post-processing of it. Truncated
is not, so it needs a proof, coordinate by coordinate (independent coordinates of mu_i are together
sqrt(sum mu_i^2)-GDP). Let F be the distribution function at centre m, and u(y) = Phi^-1(F(y)). The law is an
exponential family in m / sigma^2, so dF(y)/dm = Cov(1{Y <= y}, Y) / sigma^2. Y is X = N(m, sigma^2) under the
increasing map between the two laws, which never stretches (Caffarelli 2000: the box only makes the law more
log-concave). X - Y then increases with X, so -Cov(1{Y <= y}, Y) is at most what it is for X itself, sigma * phi(u). So
|du/dm| <= 1 / sigma: the most powerful test, which is a threshold on y, tells centres m and m' apart no better than
N(0, 1) from N(|m - m'| / sigma, 1), which is mu-GDP.
A truncated release has a pure bound besides: y and the law's mean both lie in the box, so the log-ratio changes with m
by at most 2A / sigma^2, and over D coordinates in a ball of radius R by at most 4 A R sqrt(D) / sigma^2.

NOT this: noise cut off around the signal itself. The supports of two inputs then differ, whatever falls outside the
common part names the input, and delta is at least that mass (nearly 1 in a few hundred coordinates). It is not offered.

Data-dependent: a small change of a value shows by its Fisher information, which is less than the whole Gaussian's
1 / sigma^2, and least where the value is near or beyond the box. `fisher` gives it at the real values: a description of
these values, which depends on them, and no bound for anything but small changes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.special import log_ndtr, ndtr, ndtri

from privtune.device.noise.params import AggregateNoise, Support
from privtune.device.noise.randomness import NoiseSource
from privtune.device.privacy.bounds import gaussian_sigma
from privtune.shared.errors import InvalidInput

_FARTHEST = 30.0  # deviations: beyond, a value's own law has too little mass in the box to be drawn from in float64


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """N(0, sigma^2) on each coordinate.

    sigma: standard deviation.
    support: of the released values.
    ratio: half the width A of the box, in standard deviations.
    """

    sigma: float
    support: Support = "whole"
    ratio: float = 1.0

    @property
    def half_width(self) -> float:
        """A; infinite without a box."""
        return math.inf if self.support == "whole" else self.ratio * self.sigma

    @property
    def most_fisher(self) -> float:
        """Fisher information of a coordinate in the middle of the box, the largest, relative to whole noise."""
        return float(self.fisher(torch.zeros(1)))

    def release(self, signal: Tensor, source: NoiseSource) -> Tensor:
        """The noised signal, of any shape; float32.

        Raises InvalidInput where a value is so far outside a truncated support that its law can't be drawn from.
        """
        if self.support == "truncated":
            return self._truncated(signal, source)
        noised = source.normal(*signal.shape).mul_(self.sigma).to(signal.device).add_(signal)
        return noised.clamp_(-self.half_width, self.half_width) if self.support == "rectified" else noised

    def log_likelihood(self, released: Tensor, signal: Tensor) -> Tensor:
        """How well each signal explains what was released, in nats and up to a constant; float64. They broadcast.

        At an edge of a rectified support, the chance of falling beyond it.
        """
        off = (released.double() - signal.double()) / self.sigma
        inside: Tensor = -0.5 * off.square()
        if self.support == "whole":
            return inside
        to_low, to_high = ((end * self.half_width - signal.double()) / self.sigma for end in (-1, 1))
        if self.support == "truncated":
            mass: Tensor = log_ndtr(to_high) + torch.log1p(-torch.exp(log_ndtr(to_low) - log_ndtr(to_high)))
            return inside - mass
        at_edge = released.abs() >= self.half_width - 1e-3 * self.sigma  # what is sent may be rounded
        beyond = torch.where(released > 0, log_ndtr(-to_high), log_ndtr(to_low))
        return torch.where(at_edge, beyond, inside)

    def fisher(self, signal: Tensor) -> Tensor:
        """Fisher information of each coordinate at this signal, relative to whole noise; 0 to 1, float64."""
        if self.support == "whole":
            return torch.ones(signal.shape, dtype=torch.float64)
        low, high = self._ends(signal)
        mass, at_low, at_high = ndtr(high) - ndtr(low), _density(low), _density(high)
        inside = mass + low * at_low - high * at_high  # integral of t^2 phi(t)
        if self.support == "rectified":
            found: Tensor = inside + at_low.square() / ndtr(low).clamp(min=1e-300) + at_high.square() / ndtr(-high)
        else:
            found = inside / mass - ((at_low - at_high) / mass).square()
        return found.clamp(0, 1)

    def _truncated(self, signal: Tensor, source: NoiseSource) -> Tensor:
        low, high = self._ends(signal)
        if float(high.min()) < -_FARTHEST:
            raise InvalidInput(
                f"a value is over {_FARTHEST:g} standard deviations outside the truncated support; raise support_ratio "
                "or use support=rectified"
            )
        below, above = ndtr(low), ndtr(high)
        chance = below + source.uniform(*signal.shape).to(signal.device) * (above - below)
        drawn = (signal.abs().double() + self.sigma * ndtri(chance)).clamp(-self.half_width, self.half_width)
        return torch.where(signal < 0, -drawn, drawn).float()

    def _ends(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper end in deviations from |signal|: by symmetry the tail with the mass is on the exact side."""
        middle = signal.abs().double() / self.sigma
        return -self.ratio - middle, self.ratio - middle


@dataclass(frozen=True, kw_only=True)
class AggregateLaw:
    """The noise of an aggregate of records, whose epsilon is given beside.

    kind: "pure": the aggregate's own noise with a pure epsilon (d_chi or Laplace); else the support of Gaussian noise.
    delta: of Gaussian noise.
    ratio: half the width of the box, in standard deviations; the box must hold the sums of all records to be of use.
    """

    kind: AggregateNoise = "pure"
    delta: float = 0.0
    ratio: float = 1.0

    @property
    def named(self) -> tuple[dict[str, Any], ...]:
        """What sets it apart from kind "pure", JSON-ready."""
        return () if self.kind == "pure" else (asdict(self),)

    def gaussian(self, epsilon: float, sensitivity: float) -> GaussianNoise | None:
        """Noise for values of this L2 sensitivity; None for kind "pure"."""
        if self.kind == "pure":
            return None
        return GaussianNoise(
            sigma=gaussian_sigma(epsilon, self.delta, sensitivity), support=self.kind, ratio=self.ratio
        )


PURE = AggregateLaw()


def _density(t: Tensor) -> Tensor:
    return torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi)
