"""`gaussian`: the analytic Gaussian mechanism (Balle & Wang 2018) on clipped vectors."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from privtune.device.noise.base import Mechanism, Release
from privtune.device.noise.clipping import clip_radius, clip_rows, reach
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.gaussian_noise import GaussianNoise
from privtune.device.noise.params import GaussianParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.privacy.bounds import gaussian_sigma
from privtune.device.privacy.statements import Statement
from privtune.device.privacy.statements.added_noise import gaussian_statement
from privtune.shared.errors import InvalidInput


class Gaussian(Mechanism):
    """h -> clip(h, R) + N(0, sigma^2 I), sigma exact for (epsilon, delta) at L2 sensitivity 2R (any two vectors).

    Loss: (epsilon, delta) per position, whatever the support (`noise.gaussian_noise` has the proof). Not covered: the
    influence of one token on other positions through attention, when injected at the cut.
    """

    name: ClassVar[str] = "gaussian"
    by_position = True

    def __init__(self, params: GaussianParams, context: NoiseContext) -> None:
        super().__init__(context)
        radius = clip_radius(params, context)
        if radius is None:
            raise InvalidInput("gaussian noise needs clipping", param="clip_ratio")
        self.injection = params.injection
        self.clip = radius
        self.epsilon, self.delta = params.epsilon, params.delta
        self.sigma = gaussian_sigma(params.epsilon, params.delta, 2 * radius)
        self.noise = GaussianNoise(sigma=self.sigma, support=params.support, ratio=params.support_ratio)

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        signal_BTD = clip_rows(h_BTD, self.clip)
        bounded = self.noise.support != "whole"
        return Release(
            h_BTD=self.noise.release(signal_BTD, generator),
            mask_BT=mask_BT,
            share_BT=reach(signal_BTD, self.clip),
            fisher_BT=self.noise.fisher(signal_BTD).mean(dim=-1) if bounded else None,
        )

    def _own(self, share_BT: Tensor) -> Tensor:
        return share_BT.square()  # mu of a record is the root of the sum of squares

    def _statement(self) -> Statement:
        return gaussian_statement(
            name=self.name,
            injection=self.injection,
            epsilon=self.epsilon,
            delta=self.delta,
            clip=self.clip,
            sigma=self.sigma,
            dim=self.dim,
            support=self.noise.support,
            half_width=self.noise.half_width,
            most_fisher=self.noise.most_fisher,
        )

    def _facts(self) -> dict[str, Any]:
        box = {} if self.noise.support == "whole" else {"support": self.noise.support, "ratio": self.noise.ratio}
        return {"sigma": self.sigma, "clip": self.clip, "dim": self.dim, **box}
