"""`sap`: the noise of Split-and-Privatize."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from privtune.device.noise.base import Release
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.dchi import DChi
from privtune.device.noise.params import SapParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.privacy.statements import Statement
from privtune.device.privacy.statements.no_bound import no_bound_statement
from privtune.shared.errors import InvalidInput


class SplitAndPrivatize(DChi):
    """Split-and-Privatize (Shen et al. 2023, arXiv 2312.15603): less noise on the contributing tokens.

    Loss: unbounded, because the scale of the noise depends on the secret token.
    Departure: contribution is measured by our token importance, not by the paper's own score.
    """

    name: ClassVar[str] = "sap"
    uses_importance = True

    def __init__(self, params: SapParams, context: NoiseContext) -> None:
        super().__init__(params, context)
        self.params = params
        self.importance_from = params.importance_from

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        if importance_BT is None:
            raise InvalidInput("mechanism sap needs the importance of each token")
        contributes_BT = self._contributing(importance_BT, mask_BT)
        scale_BT = torch.where(contributes_BT, self.params.kept_noise, 1.0)
        noise_BTD = generator.dchi(self.eta, *h_BTD.shape) * scale_BT.unsqueeze(-1)
        return Release(h_BTD=noise_BTD + self._clipped(h_BTD), mask_BT=mask_BT)

    def _contributing(self, importance_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The most important tokens of each record: the given share of its length, rounded up, never padding."""
        ranked_BT = importance_BT.masked_fill(~mask_BT, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank_BT = torch.empty_like(ranked_BT).scatter_(
            1, ranked_BT, torch.arange(ranked_BT.shape[1]).expand_as(ranked_BT)
        )
        wanted_B1 = (mask_BT.sum(dim=1, keepdim=True) * self.params.contributing).ceil()
        return (rank_BT < wanted_B1) & mask_BT

    def _statement(self) -> Statement:
        return no_bound_statement(
            name=self.name,
            row="scale",
            injection=self.injection,
            numbers={"eta": self.eta, "expected_noise_norm": self.dim / self.eta},
            why="the noise's scale depends on the secret token, so the ratio of probabilities is unbounded.",
        )

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "contributing": self.params.contributing, "kept": self.params.kept_noise}
