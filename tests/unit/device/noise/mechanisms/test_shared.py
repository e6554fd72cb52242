"""`shared`: the release reveals only the cluster, and that no more than the randomised response allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.shared import Shared
from privtune.device.noise.randomness import NoiseSource, noise_source
from privtune.device.noise.registry import build
from privtune.device.noise.tables.cluster_table import save_clusters
from privtune.device.noise.tables.private_counts import LabelledRows, PrivateCounts
from privtune.device.noise.tables.table_cache import read_header
from privtune.shared.errors import ArtifactCorrupt, InvalidInput
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.partition import Bottom
from tests.support.noise_contexts import HIDDEN, VOCABULARY, tiny_context
from tests.support.privacy_losses import certain_loss, certain_loss_of_counts

SMALL = {"cluster_size": 10, "max_share": 0.9}


def make(context: NoiseContext, **params: float | str) -> Shared:
    mechanism = build(MechanismSpec(name="shared", params={**SMALL, **params}), context)
    assert isinstance(mechanism, Shared)
    return mechanism


def release(mechanism: Shared, ids_BT: torch.Tensor, source: NoiseSource | None = None) -> torch.Tensor:
    mask_BT = torch.ones_like(ids_BT)
    run = mechanism.context.bottom.embed if mechanism.injection == "embedding" else mechanism.context.bottom
    return mechanism.release(ids_BT, run(ids_BT, mask_BT), mask_BT, generator=source or noise_source()).h_BTD


def two_of_one_cluster(mechanism: Shared) -> tuple[int, int, int]:
    """Two ids of cluster 0 and one of another."""
    cluster_V = mechanism.targets.cluster_V
    inside = torch.nonzero(cluster_V == 0).squeeze(1)
    return int(inside[0]), int(inside[1]), int(torch.nonzero(cluster_V == 1)[0])


@pytest.mark.parametrize("injection", ["embedding", "cut"])
def test_a_centre_is_the_same_for_a_whole_cluster_in_any_context(context: NoiseContext, injection: str) -> None:
    mechanism = make(context, injection=injection)
    a, b, other = two_of_one_cluster(mechanism)
    rows = torch.tensor([[2, a, 20, 3], [2, b, 30, 3], [2, other, 20, 3]])
    out = release(mechanism, rows)
    assert torch.equal(out[0, 1], out[1, 1])
    assert not torch.allclose(out[0, 1], out[2, 1], atol=1e-3)
    assert torch.equal(out[0, 0], out[1, 0])  # special tokens reveal only their positions
    assert torch.equal(out[0], release(mechanism, rows)[0])


def test_centres_have_the_statistics_of_prototypes(context: NoiseContext) -> None:
    targets = make(context).targets
    e_UD = targets.tables.prototypes_UD
    away_K = (targets.centre_KD - e_UD.mean(dim=0)).norm(dim=-1)
    assert torch.allclose(away_K, (e_UD - e_UD.mean(dim=0)).norm(dim=-1).mean().expand_as(away_K), rtol=1e-4)


def test_the_mixture_is_one_distribution_for_the_whole_cluster(context: NoiseContext, seeded: NoiseSource) -> None:
    mechanism = make(context, target="mixture")
    a, b, _ = two_of_one_cluster(mechanism)
    targets, count = mechanism.targets, 30_000
    drawn = [targets._members(targets.cluster_V[torch.full((1, count), i)], seeded)[0] for i in (a, b)]
    inside = torch.nonzero(targets.cluster_V == 0).squeeze(1).tolist()
    counts = [np.bincount(d.numpy(), minlength=VOCABULARY) for d in drawn]
    assert set(np.flatnonzero(counts[0])) <= set(inside)
    weight = targets.tables.frequency_U[targets.tables.place_V[torch.tensor(inside)].numpy()] ** 0.5
    assert np.allclose(counts[0][inside] / count, weight / weight.sum(), atol=0.015)
    assert certain_loss_of_counts(*counts) == 0.0


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_of_the_real_sampler_keeps_its_epsilon(
    context: NoiseContext, seeded: NoiseSource, epsilon: float
) -> None:
    mechanism = make(context, epsilon_cluster=epsilon)
    a, b, other = two_of_one_cluster(mechanism)
    targets, count = mechanism.targets, 60_000
    seen = []
    for token in (a, b, other):
        cluster_1N = targets.cluster_V[torch.full((1, count), token)]
        reported = targets.respond(cluster_1N, torch.ones(1, count, dtype=torch.bool), seeded)
        seen.append(np.bincount(reported[0].numpy(), minlength=targets.count))
    assert certain_loss_of_counts(seen[0], seen[1]) == 0.0
    assert 0.8 * epsilon < certain_loss_of_counts(seen[0], seen[2]) <= epsilon
    statement = mechanism.statement()
    assert (statement.row, statement.guarantee) == ("randomised", "pure")
    assert statement.position_epsilon == epsilon


def test_the_loss_across_clusters_stays_below_the_claim(context: NoiseContext, seeded: NoiseSource) -> None:
    mechanism = make(context, noise_ratio=8.0)
    statement = mechanism.statement()
    a, _, other = two_of_one_cluster(mechanism)
    out = [release(mechanism, torch.full((500, 60), token), seeded)[:, 30].double() for token in (a, other)]
    # One position of 500 records shows only part of the loss; the bound holds for it.
    towards = out[0].mean(0) - out[1].mean(0)
    assert certain_loss(*((x @ towards).numpy() for x in out)) <= (statement.position_epsilon or 0.0)
    assert statement.position_epsilon == pytest.approx(mechanism.eta * mechanism.targets.diameter)  # type: ignore[operator]


def test_statements_name_their_row(context: NoiseContext) -> None:
    rows = {
        (): ("cluster", "none"),
        (("noise_ratio", 2.0),): ("cluster", "pure"),
        (("target", "mixture"),): ("cluster", "none"),
        (("target", "mixture"), ("noise_ratio", 2.0)): ("clipped", "pure"),
        (("epsilon_cluster", 1.0),): ("randomised", "pure"),
    }
    for params, (row, guarantee) in rows.items():
        statement = make(context, **dict(params)).statement()
        assert (statement.row, statement.guarantee) == (row, guarantee)


def private_context(bottom: Bottom, folder: Path) -> NoiseContext:
    rows = [np.array([2, 10 + i % 5, 3]) for i in range(400)] + [np.array([2, 20 + i % 5, 3]) for i in range(400)]
    labels = np.repeat([0, 1], 400)
    records = LabelledRows(rows=[row.astype(np.int32) for row in rows], labels=labels, classes=2)
    counts = PrivateCounts(folder=folder, fingerprint="x", source=noise_source(), records=records)
    return tiny_context(bottom, private_counts=counts, cache=folder / "tables")


def test_task_aware_clusters_from_noised_private_counts_are_accounted_for(bottom: Bottom, tmp_path: Path) -> None:
    mechanism = make(
        private_context(bottom, tmp_path), groups="private", epsilon_counts=4.0, count_words=1, group_size=2
    )
    cluster_V = mechanism.targets.cluster_V
    assert not set(cluster_V[10:15].tolist()) & set(cluster_V[20:25].tolist())
    statement = mechanism.statement()
    assert statement.fitted_epsilon == 4.0
    assert "4 nats, once for this data set" in statement.text
    with_response = make(
        private_context(bottom, tmp_path), groups="private", epsilon_counts=4.0, count_words=1, epsilon_cluster=0.5
    )
    assert with_response.statement().record_epsilon(10) == pytest.approx(4.0 + 10 * 0.5)
    (made, *_) = (tmp_path / "tables").glob("clusters-*")
    assert read_header(made)["facts"]["epsilon"] == 4.0


def test_task_aware_clusters_from_public_words(bottom: Bottom) -> None:
    labelled_rows = [[2, 10 + i % 5, 3] for i in range(50)] + [[2, 20 + i % 5, 3] for i in range(50)]
    context = tiny_context(bottom, labelled_rows=labelled_rows, labels=[0] * 50 + [1] * 50)
    mechanism = make(context, groups="public", group_size=3)
    cluster_V = mechanism.targets.cluster_V
    assert not set(cluster_V[10:15].tolist()) & set(cluster_V[20:25].tolist())
    assert mechanism.statement().fitted_epsilon == 0.0
    with pytest.raises(InvalidInput, match="two classes"):
        make(tiny_context(bottom), groups="public")
    with pytest.raises(InvalidInput, match="records have labels"):
        make(tiny_context(bottom), groups="private")


def table_of(bottom: Bottom) -> tuple[torch.Tensor, torch.Tensor]:
    cluster_V = torch.arange(VOCABULARY) % 4
    cluster_V[[0, 2, 3]] = -1
    return cluster_V, torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(1))  # two clusters are empty


@pytest.mark.parametrize("target", ["centre", "mixture"])
def test_a_table_from_elsewhere_is_used_by_its_hash(bottom: Bottom, tmp_path: Path, target: str) -> None:
    context = tiny_context(bottom, cache=tmp_path)
    cluster_V, centre_KD = table_of(bottom)
    sha256 = save_clusters(
        tmp_path / "mine.safetensors", context, "cut", cluster_V, centre_KD, fitted_on="public", how="by hand"
    )
    mechanism = make(context, table=sha256[:16], target=target)
    assert mechanism.targets.count == 6
    ids_BT = torch.tensor([[2, 9, 13, 10, 3]])
    out = release(mechanism, ids_BT)[0]
    if target == "centre":
        offset_TD = torch.from_numpy(mechanism.targets.centres.table.offsets_PD[:5])
        assert torch.allclose(out[1:4], centre_KD[cluster_V[ids_BT[0, 1:4]]] + offset_TD[1:4], atol=1e-5)
    assert mechanism.statement().row == "cluster"
    assert make(context).fingerprint() != mechanism.fingerprint()


def test_the_origin_of_a_table_decides_the_claim(bottom: Bottom, tmp_path: Path) -> None:
    context = tiny_context(bottom, cache=tmp_path)
    for number, (fitted_on, epsilon, row, fitted) in enumerate(
        (("public", None, "randomised", 0.0), ("private", 2.5, "randomised", 2.5), ("private", None, "fitted", 0.0))
    ):
        sha256 = save_clusters(
            tmp_path / f"{number}.safetensors",
            context,
            "cut",
            *table_of(bottom),
            fitted_on=fitted_on,  # type: ignore[arg-type]
            epsilon=epsilon,
        )
        statement = make(context, table=sha256, epsilon_cluster=1.0).statement()
        assert (statement.row, statement.fitted_epsilon) == (row, fitted)


def test_bad_tables_are_refused(bottom: Bottom, tmp_path: Path) -> None:
    context = tiny_context(bottom, cache=tmp_path)
    cluster_V, centre_KD = table_of(bottom)
    path = tmp_path / "bad.safetensors"
    broken = [
        (cluster_V[:-1], centre_KD),
        (cluster_V, centre_KD[:, :-1]),
        (cluster_V, centre_KD[:3]),
        (cluster_V.clamp(min=0), centre_KD),
        (torch.where(torch.arange(VOCABULARY) == 9, -1, cluster_V), centre_KD),
        (cluster_V, centre_KD * float("nan")),
    ]
    for bad_V, bad_KD in broken:
        with pytest.raises(ArtifactCorrupt, match="cluster table"):
            save_clusters(path, context, "cut", bad_V, bad_KD, fitted_on="public")
