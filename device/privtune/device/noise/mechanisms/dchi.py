"""`dchi`: noise of density ~ exp(-eta ||z||), radius Gamma(D, 1/eta), direction uniform (Feyisetan et al. 2020)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from privtune.device.noise.base import Mechanism, Release
from privtune.device.noise.clipping import clip_radius, clip_rows, reach
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.params import DChiParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.privacy.bounds import dchi_eta
from privtune.device.privacy.pair_report import pair_report
from privtune.device.privacy.statements import Statement
from privtune.device.privacy.statements.added_noise import clipped_statement, metric_statement
from privtune.device.privacy.statements.no_bound import no_bound_statement


class DChi(Mechanism):
    """h -> clip(h, R) + z with ||z|| ~ Gamma(D, 1/eta), one radius per token.

    Loss: pure, eta * L2 distance per position (Feyisetan et al. 2020, section 3), so 2 * eta * R after clipping.
    Not covered: unclipped vectors at the cut, the number of tokens, a second draw of the same record.
    """

    name: ClassVar[str] = "dchi"

    def __init__(self, params: DChiParams, context: NoiseContext) -> None:
        super().__init__(context)
        self.injection = params.injection
        self.by_position = type(self) is DChi  # subclasses read ids, neighbours or importance
        self.clip = clip_radius(params, context)
        self._least_noise = params.least_noise
        if params.eta is not None:
            self.eta = params.eta
        else:
            self.eta = dchi_eta(self.dim, params.noise_ratio * context.typical_norm(params.injection))

    def resolved(self) -> dict[str, float]:
        """The noise of the token that gets least, and the clipping length, relative to the typical vector length."""
        norm = self.context.typical_norm(self.injection)
        clip_ratio = math.inf if self.clip is None else self.clip / norm
        return {"noise_ratio": self._least_noise * self.dim / (self.eta * norm), "clip_ratio": clip_ratio}

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        signal_BTD = self._clipped(h_BTD)
        noise_BTD = generator.dchi(self.eta, *signal_BTD.shape).to(signal_BTD.device)
        share_BT = None if self.clip is None else reach(signal_BTD, self.clip)
        return Release(h_BTD=noise_BTD.add_(signal_BTD), mask_BT=mask_BT, share_BT=share_BT)

    def _clipped(self, h_BTD: Tensor) -> Tensor:
        return h_BTD if self.clip is None else clip_rows(h_BTD, self.clip)

    def _statement(self) -> Statement:
        if self.injection == "embedding":
            return metric_statement(
                name=self.name,
                injection=self.injection,
                eta=self.eta,
                dim=self.dim,
                diameter=None if self.clip is None else 2 * self.clip,
                pairs=pair_report(self.context.neighbour_distances(), self.eta, self.dim),
            )
        if self.clip is None:
            return no_bound_statement(
                name=self.name,
                row="unclipped",
                injection=self.injection,
                numbers={"eta": self.eta, "expected_noise_norm": self.dim / self.eta},
                why="vectors at the cut are not clipped, and attention can move them arbitrarily far.",
            )
        return clipped_statement(name=self.name, injection=self.injection, eta=self.eta, dim=self.dim, clip=self.clip)

    def _facts(self) -> dict[str, Any]:
        return {"eta": self.eta, "clip": self.clip, "dim": self.dim}
