"""PrivTune (arXiv 2512.08809, our reading of the paper): d_chi noise with its mean moved to an optimal direction.

The shift is a public table: it misleads an attacker who does not know it, and adds nothing against one who does. So
no more is claimed than for plain d_chi noise, and `scale` importance costs even that.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from device.noise.base import Release
from device.noise.clusters import make_clusters
from device.noise.context import NoiseContext
from device.noise.dchi import DChi
from device.noise.params import PrivTuneParams
from device.noise.randomness import NoiseSource
from device.noise.shift import ShiftSettings, Solution, anchors_and_rivals, probe, solve
from device.noise.tables import Tables, cached, recipe
from shared.privacy import Statement, pair_report
from shared.statements import gain_statement, metric_statement, no_bound_statement

_SOLVED = ("neighbours", "hops", "rivals", "steps", "w_inversion", "w_attribute", "w_consistency", "tau", "rho")
_CLUSTER = 64
_RATE = 0.1


class PrivTune(DChi):
    """h -> a(t) * clip(h + shift * delta_t, R) + s(t) * z, z d_chi noise; a = s = 1 unless importance is used."""

    name: ClassVar[str] = "privtune"

    def __init__(self, params: PrivTuneParams, context: NoiseContext) -> None:
        super().__init__(params, context)
        self.params = params
        self.uses_importance = params.importance != "off"
        self.tables = Tables(context, params.injection)

    @cached_property
    def delta_VD(self) -> Tensor:
        """The shift of every id; zero for special ids. Solved at first use, or read from the cache."""
        found = cached(self.context, "shift", self._recipe(), self._solve_tables)
        delta_VD = torch.zeros(len(self.context.tokens), self.dim)
        delta_VD[self.context.usable_ids] = found["delta"].float()
        return delta_VD

    def report(self) -> dict[str, float]:
        """How well the optimisation did: goals met, cosine, length of the shifts, consistency, last loss."""
        found = cached(self.context, "shift", self._recipe(), self._solve_tables)
        names = ("inversion_met", "cosine", "relative_length", "consistency")
        history_S4 = found["history"]
        out = dict(zip(names, found["report"].tolist(), strict=True))
        return {**out, "loss_first": float(history_S4[0, 0]), "loss_last": float(history_S4[-1, 0])}

    def _recipe(self) -> dict[str, Any]:
        top = self.context.consistency is not None
        return {"injection": self.injection, "top": top, **{k: getattr(self.params, k) for k in _SOLVED}}

    def _solve_tables(self) -> dict[str, Tensor]:
        solution = self._solve()
        names = ("inversion_met", "cosine", "relative_length", "consistency")
        return {
            "delta": solution.delta_UD.half(),
            "history": solution.history_S4,
            "report": torch.tensor([solution.report[name] for name in names]),
        }

    def _solve(self) -> Solution:
        p, tables, progress = self.params, self.tables, self.context.progress
        anchor_U, rivals_UR = anchors_and_rivals(tables.unit_UD, tables.graph(p.neighbours), p.hops, p.rivals)
        cluster_U = make_clusters(
            tables.unit_UD, tables.frequency_U, size=_CLUSTER, max_share=1.0, frequency_weight=0.0, progress=progress
        )
        jacobian_DK, _ = probe(self.context, tables.prototypes_UD)
        settings = ShiftSettings(
            hops=p.hops,
            rivals=p.rivals,
            steps=p.steps,
            rate=_RATE,
            w_inversion=p.w_inversion,
            w_attribute=p.w_attribute,
            w_consistency=p.w_consistency,
            tau=p.tau,
            rho=p.rho,
        )
        cluster_U_tensor = torch.from_numpy(cluster_U)
        return solve(tables.prototypes_UD, anchor_U, rivals_UR, cluster_U_tensor, jacobian_DK, settings, progress)

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        signal_BTD = self._clipped(h_BTD + self.params.shift * self.delta_VD[ids_BT])
        noise_BTD = generator.dchi(self.eta, *signal_BTD.shape)
        if self.params.importance == "gain" and importance_BT is not None:
            signal_BTD = signal_BTD * self._between(importance_BT).unsqueeze(-1)
        if self.params.importance == "scale" and importance_BT is not None:
            noise_BTD = noise_BTD * self._between(1 - importance_BT).unsqueeze(-1)
        return Release(h_BTD=noise_BTD.to(signal_BTD.device).add_(signal_BTD), mask_BT=mask_BT)

    def _between(self, weight_BT: Tensor) -> Tensor:
        return self.params.least + (1 - self.params.least) * weight_BT.clamp(0.0, 1.0).to(torch.float32)

    def _statement(self) -> Statement:
        p = self.params
        numbers = {"eta": self.eta, "expected_noise_norm": self.dim / self.eta}
        if p.importance == "scale":
            why = "the noise's scale depends on the secret token, so the ratio of probabilities is unbounded."
            return no_bound_statement(name=self.name, row="scale", injection=p.injection, numbers=numbers, why=why)
        if p.importance == "gain" and p.importance_from == "private":
            why = "the importance was fitted on the private records themselves."
            return no_bound_statement(name=self.name, row="fitted", injection=p.injection, numbers=numbers, why=why)
        if p.importance == "gain" and self.clip is not None:
            return gain_statement(
                name=self.name, injection=p.injection, eta=self.eta, dim=self.dim, clip=self.clip, least=p.least
            )
        if p.injection == "embedding" and p.importance == "off":
            return metric_statement(
                name=self.name,
                injection=p.injection,
                eta=self.eta,
                dim=self.dim,
                diameter=None if self.clip is None else 2 * self.clip,
                pairs=pair_report(self._shifted_distances(), self.eta, self.dim),
                shifted=True,
            )
        return super()._statement()

    def _shifted_distances(self) -> Any:
        """||g(t) - g(t')|| over all neighbour pairs of the graph, g(t) = e_t + shift * delta_t."""
        usable = self.context.usable_ids
        g_UD = self.tables.prototypes_UD + self.params.shift * self.delta_VD[usable]
        a, b = (torch.from_numpy(ends) for ends in self.tables.graph(self.params.neighbours).edges())
        parts = zip(torch.split(a, 65536), torch.split(b, 65536), strict=True)
        return torch.cat([(g_UD[left] - g_UD[right]).norm(dim=-1) for left, right in parts]).double().numpy()

    def _facts(self) -> dict[str, Any]:
        p = self.params
        return {
            **super()._facts(),
            "shift": p.shift,
            "table": recipe(self.context, "shift", self._recipe()),
            "importance": [p.importance, p.importance_from, p.least],
        }
