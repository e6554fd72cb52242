"""The one number that a step of a zeroth-order job sends: clipped, summed, noised, and kept before it may be sent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from privtune.device.noise.gaussian_noise import GaussianNoise
from privtune.device.noise.randomness import NoiseSource
from privtune.device.privacy.statements.noised_slopes import SlopeStatement
from privtune.device.release.slope_store import SlopeStore

# Steps of a standard deviation: what leaves is a multiple, so that the lowest bits of the sum do not show through those
# of floating-point noise (Mironov 2012).
_GRID = 1024


def noise_of(statement: SlopeStatement) -> GaussianNoise:
    """The noise on a step's sum."""
    return GaussianNoise(sigma=statement.sigma, support=statement.support, ratio=statement.ratio)


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """What releases a job's slopes.

    statement: what may be claimed, and so how much noise there is.
    store: where they are kept.
    source: where the noise comes from.
    """

    statement: SlopeStatement
    store: SlopeStore
    source: NoiseSource

    def check(self, most: int) -> None:
        """Raises InvalidInput where the sum of so many slopes could lie too far outside a truncated support.

        Before anything is sent, and whatever the slopes are: a refusal half-way would tell of them.
        """
        noise = self._noise
        if noise.support == "truncated":
            noise.release(torch.tensor([most * self.statement.clip], dtype=torch.float64), self.source)

    def released(self, step: int, slope_N: Tensor) -> float:
        """The mean of a step's N slopes, as it leaves; drawn at the first request. On disk on return.

        N is public: the cloud sees which records take part.
        """
        kept = self.store[step]
        if kept is not None:
            return kept
        clip, sigma = self.statement.clip, self.statement.sigma
        # A record's slope is finite here (`SlopeHead.slopes`), and replacing it moves the sum by at most 2 * clip.
        slope_N = slope_N.clamp(-clip, clip)
        total = self._noised(float(slope_N.sum()))
        mean = round(total / sigma * _GRID) * sigma / _GRID / len(slope_N)
        return self.store.keep(step, mean, slope_N.abs().float().numpy())

    @property
    def _noise(self) -> GaussianNoise:
        return noise_of(self.statement)

    def _noised(self, total: float) -> float:
        noise = self._noise
        if noise.support == "truncated":
            return float(noise.release(torch.tensor([total], dtype=torch.float64), self.source))
        return max(-noise.half_width, min(noise.half_width, total + noise.sigma * self._normal()))

    def _normal(self) -> float:
        """A standard normal of 53-bit uniforms, by Box-Muller."""
        radius, angle = self.source.uniform(2).tolist()
        return math.sqrt(-2 * math.log1p(-radius)) * math.cos(2 * math.pi * angle)
