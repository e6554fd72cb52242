"""The token graph against brute force on a small point set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from privtune.device.noise.tables import graph as g
from privtune.device.noise.tables.graph import Graph, centred, nearest
from privtune.shared.errors import InvalidInput


@pytest.fixture(scope="module")
def unit_UD() -> torch.Tensor:
    return centred(torch.randn(60, 8, generator=torch.Generator().manual_seed(3)) + 5.0)


def test_centred_takes_the_common_direction_out(unit_UD: torch.Tensor) -> None:
    raw = torch.randn(60, 8, generator=torch.Generator().manual_seed(3)) + 5.0
    assert float(torch.nn.functional.cosine_similarity(raw[:30], raw[30:]).mean()) > 0.8
    assert abs(float((unit_UD[:30] * unit_UD[30:]).sum(-1).mean())) < 0.15
    assert torch.allclose(unit_UD.norm(dim=-1), torch.ones(60))


def test_nearest_is_exact_and_never_oneself(unit_UD: torch.Tensor) -> None:
    found = nearest(unit_UD, 5)
    similar = unit_UD @ unit_UD.T
    similar.fill_diagonal_(-9)
    assert torch.equal(found, similar.argsort(dim=1, descending=True)[:, :5])
    with pytest.raises(InvalidInput, match="no 60 neighbours"):
        nearest(unit_UD, 60)


def test_wide_vocabularies_search_by_projection_and_rank_exactly(
    unit_UD: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = nearest(unit_UD, 5)
    monkeypatch.setattr(g, "_EXACT_LIMIT", 10)
    monkeypatch.setattr(g, "_PROJECTED", 6)
    found = nearest(unit_UD, 5)
    assert torch.equal(found, nearest(unit_UD, 5))
    shared = [len(set(a) & set(b)) / 5 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    assert np.mean(shared) > 0.9


def test_the_graph_is_symmetric_and_its_shells_are_distances(unit_UD: torch.Tensor) -> None:
    from scipy.sparse.csgraph import shortest_path

    near = nearest(unit_UD, 4)
    graph = Graph.from_nearest(near)
    wanted = np.zeros((60, 60), dtype=bool)
    wanted[np.repeat(np.arange(60), 4), near.numpy().ravel()] = True
    wanted |= wanted.T
    got = np.zeros_like(wanted)
    for u in range(60):
        got[u, graph.neighbours(u)] = True
    assert (got == wanted).all()
    a, b = graph.edges()
    assert len(a) == wanted.sum() / 2
    assert wanted[a, b].all()
    distance = shortest_path(wanted, unweighted=True)
    for u in range(0, 60, 7):
        for n, shell in enumerate(graph.shells(u, 3)):
            assert shell.tolist() == np.flatnonzero(distance[u] == n).tolist()
