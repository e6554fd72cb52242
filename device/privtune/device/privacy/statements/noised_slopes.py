"""The statement for the slopes of a zeroth-order job: one noised number a step, all that training sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from privtune.device.privacy.bounds import gaussian_mu, gaussian_sigma, gdp_epsilon
from privtune.device.privacy.statements.statement import FloatArray, rounded_up

SLOPE_CAVEATS = (
    "The bound is for what the slopes add to the released vectors, which have their own claim above.",
    "The cloud knows which handles take part in which step, so nothing is gained by sampling, and none is claimed.",
    "Identical records in one data set are separate records. Another job on the same records adds its own slopes.",
    "Computed in floating point, and rounded to a thousandth of the noise: the ideal Gaussian is approximated.",
)


@dataclass(frozen=True, kw_only=True)
class SlopeStatement:
    """What may be claimed for the slopes that a job returns.

    Gaussian mechanism: in each step that a record takes part in, its slope is clipped to [-clip, clip] and enters one
    sum with noise N(0, sigma^2), so replacing the record moves that sum by at most 2 * clip. Steps are adaptive: what
    they ask depends on earlier slopes. The composition of P Gaussian mechanisms is Gaussian with sensitivity
    2 * clip * sqrt(P) (Dong, Roth & Su 2022, theorem 4 and corollary 2), so (epsilon, delta) is exact. Noise of bounded
    support is as private, since each of its releases is mu-GDP with the same mu (`noise.gaussian_noise` has the proof).

    Everything that a slope depends on besides its own step's records is public or was sent before: the seed of the
    directions, the released vectors, and a head that only slopes have changed. So it holds whatever the cloud computes.

    epsilon, delta: of a record, for all steps of the job together.
    clip: largest slope that counts.
    times: steps that a record takes part in, at most.
    support, ratio: of the noised sums, see `GaussianNoise`.
    unsafe_seed: the noise came from a fixed seed, so NOTHING is claimed.
    """

    epsilon: float
    delta: float
    clip: float
    times: int
    support: Literal["whole", "rectified", "truncated"] = "whole"
    ratio: float = 3.0
    unsafe_seed: bool = False

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise on a step's sum of slopes."""
        return gaussian_sigma(self.epsilon, self.delta, 2 * self.clip * self.times**0.5)

    def epsilon_after(self, times: int) -> float:
        """Epsilon of a record that took part in so many steps, at the same delta."""
        return gdp_epsilon(gaussian_mu(2 * self.clip * times**0.5, self.sigma), self.delta)

    def own_epsilons(self, moved_N: FloatArray) -> FloatArray:
        """Loss of each record against any other in its place, at the same delta, given the slopes that were sent.

        A record whose slope is s moves a step's sum by at most |s| + clip, and cannot be told from another by more
        (Yu et al. 2022, arXiv 2206.02617: output-specific, since later slopes depend on earlier ones).
        moved_N: root of the sum of its (|s| + clip)^2. Rounded up to three digits, never above the worst case.
        """
        worst = 2 * self.clip * self.times**0.5
        different, which_N = np.unique(np.minimum(rounded_up(moved_N), worst), return_inverse=True)
        bounds = [gdp_epsilon(gaussian_mu(moved, self.sigma), self.delta) for moved in different.tolist()]
        return np.array(bounds)[which_N]

    @property
    def _law(self) -> str:
        return "" if self.support == "whole" else f"{self.support} (within {self.ratio:g} deviations of 0) "

    def lines(self) -> list[str]:
        """The claim, then what it does not cover."""
        if self.unsafe_seed:
            return ["Slopes: FIXED SEED, TESTS ONLY: whoever knows the seed removes the noise. Nothing is claimed."]
        return [
            f"Slopes: training sends one number a step, the sum of its records' slopes, each clipped to {self.clip:g}, "
            f"with {self._law}Gaussian noise of standard deviation {self.sigma:.4g}. A record takes part in "
            f"{self.times} of them at most: replacing it, its label included, is ({self.epsilon:.4g}, "
            f"{self.delta:.2g})-private for all of them together, given the released vectors. No gradient leaves.",
            *(f"- {caveat}" for caveat in SLOPE_CAVEATS),
        ]
