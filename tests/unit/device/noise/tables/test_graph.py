"""The token graph against brute force on a small point set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from privtune.device.noise.tables import clustering
from privtune.device.noise.tables import graph as g
from privtune.device.noise.tables.graph import Graph, centred, nearest, recall
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


def wide(monkeypatch: pytest.MonkeyPatch, limit: int = 10) -> None:
    """From here on even a small vocabulary is a large one."""
    monkeypatch.setattr(g, "WIDE", limit)
    monkeypatch.setattr(clustering, "WIDE", limit)


def words(count: int, width: int) -> torch.Tensor:
    """Points in groups, as words are."""
    generator = torch.Generator().manual_seed(4)
    groups = torch.randn(count // 20, width, generator=generator)
    return centred(groups.repeat(20, 1) + 1.2 * torch.randn(count // 20 * 20, width, generator=generator))


def test_a_large_vocabulary_is_searched_in_lists_and_its_recall_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    unit_UD = words(3000, 120)
    exact = nearest(unit_UD, 5)
    assert recall(unit_UD, exact) == 1.0
    wide(monkeypatch)
    monkeypatch.setattr(g, "_LIST", 50)
    monkeypatch.setattr(g, "_PROBED", 8)  # of 60 lists
    shares: list[float] = []
    found = nearest(unit_UD, 5, lambda what, share: shares.append(share))
    missed = ~(found[:, :, None] == exact[:, None, :]).any(-1)
    measured = recall(unit_UD, found)
    assert 0.5 < measured < 1
    assert abs(float(1 - missed.float().mean()) - measured) < 0.05
    assert recall(unit_UD, exact) == 1.0
    assert torch.equal(nearest(unit_UD, 5), found)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert not (found == torch.arange(len(found))[:, None]).any()


def test_many_equal_points_still_have_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    wide(monkeypatch)
    monkeypatch.setattr(g, "_LIST", 2)
    monkeypatch.setattr(g, "_PROBED", 1)
    points_UD = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    points_UD[:20] = points_UD[0]
    found = nearest(points_UD, 6)
    assert all(len(set(row)) == 6 for row in found.tolist())


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
