"""The optimisation: each term does its job, each constraint holds, and each can be turned off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from privtune.device.noise.tables.clustering import kmeans
from privtune.device.noise.tables.graph import Graph, centred, nearest
from privtune.device.noise.tables.shift import ShiftSettings, Solution, anchors_and_rivals, solve

COUNT, DIM = 300, 24
ALL = ShiftSettings(hops=2, rivals=8, steps=40, w_inversion=1, w_attribute=0.3, w_consistency=0.3, tau=0.4, rho=0.25)


class Setting:
    """Points in loose clouds, as prototypes are."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        clouds = torch.randn(12, DIM, generator=generator).repeat_interleave(COUNT // 12, dim=0)
        self.e_UD = 3.0 + clouds + 0.7 * torch.randn(COUNT, DIM, generator=generator)
        self.unit_UD = centred(self.e_UD)
        self.graph = Graph.from_nearest(nearest(self.unit_UD, 6))
        self.clusters = torch.from_numpy(kmeans(self.unit_UD, 12))
        self.jacobian_DK = torch.zeros(DIM, 2)
        self.jacobian_DK[0, 0] = self.jacobian_DK[1, 1] = 1.0  # predictions read the first two coordinates only

    def solve(self, **changes: Any) -> tuple[Solution, Tensor, Tensor]:
        settings = replace(ALL, **changes)
        anchor_U, rivals_UR = anchors_and_rivals(
            self.unit_UD, self.graph, settings.hops, settings.rivals, lambda what, share: None
        )
        solution = solve(self.e_UD, anchor_U, rivals_UR, self.clusters, self.jacobian_DK, settings)
        return solution, anchor_U, rivals_UR


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


def test_anchors_lie_n_hops_away_and_rivals_are_nearer_shells(setting: Setting) -> None:
    for hops in (1, 2, 3):
        _, anchor_U, rivals_UR = setting.solve(hops=hops, steps=1)
        for u in range(0, COUNT, 29):
            shells = setting.graph.shells(u, hops)
            depth = max(n for n in range(hops + 1) if len(shells[n]))
            assert int(anchor_U[u]) in shells[depth]
            assert rivals_UR[u, 0] == u
            assert set(rivals_UR[u].tolist()) <= set(np.concatenate(shells[:depth]).tolist())


def test_shifted_vectors_are_nearer_to_the_anchor_than_to_any_rival(setting: Setting) -> None:
    solution, anchor_U, rivals_UR = setting.solve(tau=0.0, rho=0.0, w_attribute=0.0, w_consistency=0.0)
    x_UD = setting.e_UD + solution.delta_UD
    to_anchor = (x_UD - setting.e_UD[anchor_U]).norm(dim=-1)
    to_rivals = (x_UD[:, None] - setting.e_UD[rivals_UR]).norm(dim=-1).amin(dim=1)
    met = (to_anchor < to_rivals).float().mean()
    assert float(met) == pytest.approx(solution.report["inversion_met"], abs=0.01)
    assert met > 0.95


def test_the_descent_converges(setting: Setting) -> None:
    loss = setting.solve()[0].history_S4[:, 0]
    assert loss[-1] < 0.5 * loss[0]
    assert float((loss[-5:] - loss[-1]).abs().max()) < 0.05 * float(loss[0])


@pytest.mark.parametrize("tau", [0.3, 0.8, 0.95])
def test_semantic_preservation_holds_for_every_id(setting: Setting, tau: float) -> None:
    solution, *_ = setting.solve(tau=tau)
    mean_D = setting.e_UD.mean(dim=0)
    cosine = cosine_similarity(setting.e_UD + solution.delta_UD - mean_D, setting.e_UD - mean_D)
    assert float(cosine.min()) >= tau - 1e-3
    assert solution.report["semantic_kept"] == 1.0


@pytest.mark.parametrize("rho", [0.05, 0.25])
def test_distributional_similarity_holds(setting: Setting, rho: float) -> None:
    solution, *_ = setting.solve(rho=rho, tau=0.0)
    x_UD = setting.e_UD + solution.delta_UD
    spread = setting.e_UD.std(dim=-1)
    assert ((x_UD.mean(-1) - setting.e_UD.mean(-1)).abs() <= rho * spread + 1e-3).all()
    assert ((x_UD.std(-1) - spread).abs() <= rho * spread + 1e-3).all()
    assert setting.solve(rho=rho)[0].report["distribution_kept"] > 0.9


def test_each_term_has_its_switch_and_its_effect(setting: Setting) -> None:
    free: dict[str, Any] = {"tau": 0.0, "rho": 0.0}
    with_all, *_ = setting.solve(**free)
    for name, measure, better in (
        ("w_inversion", "inversion_met", 1),
        ("w_attribute", "attribute_growth", 1),
        ("w_consistency", "consistency", -1),
    ):
        without, *_ = setting.solve(**free, **{name: 0.0})
        column = ("w_inversion", "w_attribute", "w_consistency").index(name) + 1
        assert float(without.history_S4[:, column].abs().sum()) == 0.0
        strong, *_ = setting.solve(**free, **{name: 3.0})
        assert better * strong.report[measure] > better * without.report[measure]
    tight, *_ = setting.solve(tau=0.9, rho=0.0)
    assert tight.report["cosine"] > with_all.report["cosine"]
    assert tight.report["relative_length"] < with_all.report["relative_length"]


def test_the_cosine_projection_is_the_nearest_point(setting: Setting) -> None:
    """A projection: idempotent, and no other point of the cone is nearer."""
    from privtune.device.noise.tables.shift import _Problem

    e_ND = setting.e_UD[:20] - setting.e_UD.mean(dim=0)
    settings = replace(ALL, rho=0.0, tau=0.7)
    problem = _Problem(
        e_ND, e_ND, e_ND.unsqueeze(1), torch.zeros_like(e_ND), setting.jacobian_DK, torch.zeros(DIM), settings
    )
    generator = torch.Generator().manual_seed(1)
    x_ND = 3 * torch.randn(20, DIM, generator=generator)
    projected = problem._project(x_ND)
    assert torch.allclose(problem._project(projected), projected, atol=1e-4)
    for _ in range(200):
        other = problem._project(projected + torch.randn(20, DIM, generator=generator))
        assert ((x_ND - other).norm(dim=-1) >= (x_ND - projected).norm(dim=-1) - 1e-3).all()
