"""`privtune`: PrivTune (arXiv 2512.08809, our reading of the paper), d_chi noise with a shifted mean.

The shift is a public table: it misleads an attacker who does not know it, and adds nothing against one who does. So
no more is claimed than for plain d_chi noise, and `scale` importance forfeits even that.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding

from privtune.device.noise.base import Release
from privtune.device.noise.clipping import reach
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.dchi import DChi
from privtune.device.noise.params import PrivTuneParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.clustering import make_clusters
from privtune.device.noise.tables.public_tables import PublicTables
from privtune.device.noise.tables.shift import TERMS, ShiftSettings, anchors_and_rivals, probe, solve
from privtune.device.noise.tables.table_cache import cached, find_table, recipe
from privtune.device.privacy.pair_report import pair_report
from privtune.device.privacy.statements import Statement
from privtune.device.privacy.statements.added_noise import gain_statement, metric_statement
from privtune.device.privacy.statements.no_bound import no_bound_statement

KIND = "shift"
_SOLVED = ("neighbours", "hops", "rivals", "steps", "w_inversion", "w_attribute", "w_consistency", "tau", "rho")
_REPORT = (
    "inversion_met",
    "attribute_growth",
    "consistency",
    "cosine",
    "semantic_kept",
    "distribution_kept",
    "relative_length",
)
_CLUSTER = 64  # smallest size of the clusters that the attribute goal moves away from


class PrivTune(DChi):
    """h -> a(t) * clip(h + shift * delta_t, R) + s(t) * z, z d_chi noise; a = s = 1 unless importance is used.

    Loss: that of d_chi noise on the shifted signal: eta * ||g(t) - g(t')|| at `embedding`, 2 * eta * R per position at
    `cut`. `gain` importance (a in [least, 1], equal noise) keeps 2 * eta * R, because a shorter signal stays in the
    ball. Under `scale` importance (s in [least, 1]) the ratio of probabilities is unbounded and nothing is claimed.
    """

    name: ClassVar[str] = "privtune"

    def __init__(self, params: PrivTuneParams, context: NoiseContext) -> None:
        super().__init__(params, context)
        self.params = params
        self.uses_importance = params.importance != "off"
        self.importance_from = params.importance_from
        self.tables = PublicTables(context, params.injection)

    @cached_property
    def _table(self) -> dict[str, Tensor]:
        """delta (U, D), history (steps + 1, 4) and report: solved at first use, or read from the cache."""
        if self.params.table:
            return find_table(self.context, KIND, self.injection, self.params.table).tensors
        return cached(self.context, KIND, self._recipe(), self._solve)

    @cached_property
    def delta_VD(self) -> Tensor:
        """The shift of every id; zero for ids that are not usable."""
        delta_VD = torch.zeros(len(self.context.tokens), self.dim)
        delta_VD[self.context.usable_ids] = self._table["delta"].float()
        return delta_VD

    @cached_property
    def _moved_VD(self) -> Tensor:
        return self.params.shift * self.delta_VD

    def prepare(self) -> dict[str, float]:
        """How well each goal is met (see `Solution`), and the mean of each term at the first and last step."""
        history_S4 = self._table["history"]
        out = dict(zip(_REPORT, self._table["report"].tolist(), strict=True))
        if not self.params.table:
            out["neighbour_recall"] = self.tables.recall(self.params.neighbours)
        for i, term in enumerate(TERMS):
            out |= {f"{term}_first": float(history_S4[0, i]), f"{term}_last": float(history_S4[-1, i])}
        return out

    def _recipe(self) -> dict[str, Any]:
        top = self.context.consistency is not None
        return {"injection": self.injection, "top": top, **{key: getattr(self.params, key) for key in _SOLVED}}

    def _solve(self) -> dict[str, Tensor]:
        p, tables, progress = self.params, self.tables, self.context.progress
        anchor_U, rivals_UR = anchors_and_rivals(tables.unit_UD, tables.graph(p.neighbours), p.hops, p.rivals, progress)
        cluster_U = make_clusters(
            tables.unit_UD, tables.frequency_U, size=_CLUSTER, max_share=1.0, frequency_weight=0.0, progress=progress
        )
        settings = ShiftSettings(
            hops=p.hops,
            rivals=p.rivals,
            steps=p.steps,
            w_inversion=p.w_inversion,
            w_attribute=p.w_attribute,
            w_consistency=p.w_consistency,
            tau=p.tau,
            rho=p.rho,
        )
        solution = solve(
            tables.prototypes_UD,
            anchor_U,
            rivals_UR,
            torch.from_numpy(cluster_U),
            probe(self.context, tables.prototypes_UD),
            settings,
            progress,
        )
        return {
            "delta": solution.delta_UD.half(),
            "history": solution.history_S4,
            "report": torch.tensor([solution.report[name] for name in _REPORT]),
        }

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        signal_BTD = self._clipped(embedding(ids_BT, self._moved_VD).add_(h_BTD))
        noise_BTD = generator.dchi(self.eta, *signal_BTD.shape).to(signal_BTD.device)
        if self.params.importance == "gain" and importance_BT is not None:
            signal_BTD *= self._between(importance_BT).unsqueeze(-1)
        if self.params.importance == "scale" and importance_BT is not None:
            noise_BTD *= self._between(1 - importance_BT).unsqueeze(-1)
        share_BT = None if self.clip is None else reach(signal_BTD, self.clip)
        return Release(h_BTD=noise_BTD.add_(signal_BTD), mask_BT=mask_BT, share_BT=share_BT)

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
        if p.importance == "gain":
            why = "the vectors are not clipped, so a scaled signal can lie arbitrarily far from another."
            return no_bound_statement(name=self.name, row="unclipped", injection=p.injection, numbers=numbers, why=why)
        if p.injection == "embedding":
            return metric_statement(
                name=self.name,
                injection=p.injection,
                eta=self.eta,
                dim=self.dim,
                diameter=None if self.clip is None else 2 * self.clip,
                pairs=pair_report(self._pair_distances(), self.eta, self.dim),
                shifted=True,
            )
        return super()._statement()

    def _pair_distances(self) -> NDArray[np.float64]:
        """||g(t) - g(t')|| over all neighbour pairs of the graph, g(t) = clip(e_t + shift * delta_t)."""
        usable = self.context.usable_ids
        g_UD = self._clipped(self.tables.prototypes_UD + self.params.shift * self.delta_VD[usable])
        a, b = (torch.from_numpy(ends) for ends in self.tables.graph(self.params.neighbours).edges())
        parts = zip(torch.split(a, 65536), torch.split(b, 65536), strict=True)
        distances: NDArray[np.float64] = (
            torch.cat([(g_UD[left] - g_UD[right]).norm(dim=-1) for left, right in parts]).double().numpy()
        )
        return distances

    def _facts(self) -> dict[str, Any]:
        p = self.params
        return {
            **super()._facts(),
            "shift": p.shift,
            "table": p.table or recipe(self.context, KIND, self._recipe()),
            "importance": [p.importance, p.importance_from, p.least],
        }
