"""`pool`: what is summed, and that the real sampler keeps every bound when a whole released row changes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.pool import Pool, pool_rows
from privtune.device.noise.randomness import NoiseSource, noise_source
from privtune.device.noise.registry import build
from privtune.shared.job_spec import MechanismSpec
from tests.support.noise_contexts import HIDDEN
from tests.support.privacy_losses import certain_loss, certain_loss_of_counts


def make(context: NoiseContext, **params: float | str | bool) -> Pool:
    mechanism = build(MechanismSpec(name="pool", params={"cluster_size": 10, "max_share": 0.9, **params}), context)
    assert isinstance(mechanism, Pool)
    return mechanism


def test_rows_are_sums_over_the_root_of_their_number() -> None:
    h_BTD = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    mask_BT = torch.arange(7) < torch.tensor([[7], [4], [1]])
    out = pool_rows(h_BTD, mask_BT, torch.tensor([True, False, True]), 3)
    root = math.sqrt(3)
    assert out.mask_BT.sum(dim=1).tolist() == [3, 2, 1]
    assert torch.allclose(out.h_BTD[0, 0], h_BTD[0, 0])
    assert torch.allclose(out.h_BTD[0, 1], h_BTD[0, 1:4].sum(0) / root)
    assert torch.allclose(out.h_BTD[0, 2], h_BTD[0, 4:7].sum(0) / root)
    assert torch.allclose(out.h_BTD[1, 0], h_BTD[1, :3].sum(0) / root)
    assert torch.allclose(out.h_BTD[1, 1], h_BTD[1, 3] / root)  # the divisor stays, so its sensitivity is no larger
    assert torch.allclose(out.h_BTD[2, 0], h_BTD[2, 0])
    assert not out.h_BTD[1:, 2].any()


def test_order_inside_a_sum_is_lost(context: NoiseContext) -> None:
    mechanism = make(context, size=4, clusters=False, injection="embedding", clip_ratio=50)
    h_BTD = torch.randn(1, 4, HIDDEN, generator=torch.Generator().manual_seed(0))
    ids_BT = torch.tensor([[9, 10, 11, 12]])
    swapped = torch.tensor([2, 0, 3, 1])
    one = mechanism.release(ids_BT, h_BTD, torch.ones(1, 4), generator=noise_source())
    two = mechanism.release(ids_BT[:, swapped], h_BTD[:, swapped], torch.ones(1, 4), generator=noise_source())
    assert torch.allclose(one.h_BTD, two.h_BTD, atol=1e-5)
    assert one.mask_BT.shape == (1, 1)


@pytest.mark.parametrize("size", [2, 5])
def test_noise_keeps_the_bound_when_all_summands_change(context: NoiseContext, seeded: NoiseSource, size: int) -> None:
    mechanism = make(context, size=size, clusters=False, clip=0.4, noise_ratio=3.0)
    statement = mechanism.statement()
    bound = statement.position_epsilon or 0.0
    assert mechanism.eta is not None
    assert bound == pytest.approx(2 * mechanism.eta * math.sqrt(size) * 0.4)
    count = 30_000
    axis = torch.zeros(HIDDEN)
    axis[3] = 5.0
    ids_BT = torch.full((count, size), 9)
    out = [
        mechanism.release(ids_BT, x.expand(count, size, -1), torch.ones_like(ids_BT), generator=seeded).h_BTD[:, 0]
        for x in (axis, -axis)
    ]
    far = [x.double().mean(0) for x in out]
    assert float((far[0] - far[1]).norm()) == pytest.approx(2 * math.sqrt(size) * 0.4, rel=0.1)
    scores = [(x.double() @ (far[0] - far[1])).numpy() for x in out]
    assert 0.0 < certain_loss(*scores) <= bound
    # One changed summand is bounded by its own, smaller figure.
    mixed = axis.expand(count, size, -1).clone()
    mixed[:, 0] = -axis
    one = mechanism.release(ids_BT, mixed, torch.ones_like(ids_BT), generator=seeded).h_BTD[:, 0]
    score = (one.double() @ (far[0] - far[1])).numpy()
    assert certain_loss(scores[0], score) <= statement.numbers["one_vector_bound"]


def test_randomised_response_costs_every_summand_its_epsilon(context: NoiseContext, seeded: NoiseSource) -> None:
    """Four tokens of epsilon 0.5 in one released row: 2.0 per row, 0.5 per token; measured on the reported clusters."""
    size, epsilon, count = 4, 0.5, 400_000
    mechanism = make(context, size=size, epsilon_cluster=epsilon)
    statement = mechanism.statement()
    assert (statement.row, statement.guarantee) == ("randomised", "pure")
    assert statement.position_epsilon == size * epsilon
    assert statement.numbers["token_bound"] == epsilon
    assert statement.record_epsilon(3) == 3 * size * epsilon
    targets = mechanism.targets
    assert targets is not None

    def all_true(cluster: int) -> np.ndarray:
        """How often all four summands report cluster 0, when all four are truly of `cluster`."""
        truth = torch.full((count, size), cluster)
        reported = targets.respond(truth, torch.ones_like(truth, dtype=torch.bool), seeded)
        hits = int((reported == 0).all(dim=1).sum())
        return np.array([hits, count - hits])

    seen = certain_loss_of_counts(all_true(0), all_true(1))
    assert epsilon < seen <= size * epsilon


def test_statements_name_their_row(context: NoiseContext) -> None:
    rows = {
        (): ("cluster", "none"),
        (("noise_ratio", 2.0),): ("clipped", "pure"),
        (("epsilon_cluster", 1.0),): ("randomised", "pure"),
        (("clusters", False),): ("unclipped", "none"),
        (("clusters", False), ("noise_ratio", 2.0)): ("clipped", "pure"),
        (("clusters", False), ("noise_ratio", 2.0), ("clip_ratio", 0)): ("unclipped", "none"),
    }
    for params, (row, guarantee) in rows.items():
        statement = make(context, **dict(params)).statement()
        assert (statement.row, statement.guarantee) == (row, guarantee)


def test_pooled_noise_has_the_right_length(context: NoiseContext, seeded: NoiseSource) -> None:
    mechanism = make(context, size=3, clusters=False, noise_ratio=4.0)
    ids_BT = torch.full((3000, 6), 9)
    out = mechanism.release(ids_BT, torch.zeros(3000, 6, HIDDEN), torch.ones_like(ids_BT), generator=seeded)
    lengths = out.h_BTD[:, 0].norm(dim=-1).double().numpy()
    assert stats.kstest(lengths, stats.gamma(HIDDEN, scale=1 / (mechanism.eta or 1.0)).cdf).pvalue > 1e-4
    assert all(np.unique(x).size > 2990 for x in itertools.chain([lengths]))
