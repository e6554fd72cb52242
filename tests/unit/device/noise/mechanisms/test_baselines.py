"""Other people's mechanisms: sampled as their papers say, and bounded where they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.baselines import SplitAndPrivatize, SplitNDenoise, TextObfuscator
from privtune.device.noise.mechanisms.custext import CusText
from privtune.device.noise.randomness import NoiseSource, noise_source
from privtune.device.noise.registry import build
from privtune.device.privacy.bounds import laplace_bound
from privtune.shared.job_spec import MechanismSpec
from tests.support.noise_contexts import HIDDEN, VOCABULARY
from tests.support.privacy_losses import certain_loss, certain_loss_of_counts


def test_snd_clips_embeddings_before_the_noise(context: NoiseContext) -> None:
    mechanism = build(MechanismSpec(name="snd", params={"noise_ratio": 0.001}), context)
    assert isinstance(mechanism, SplitNDenoise)
    assert mechanism.injection == "embedding"
    ids_BT = torch.full((1, 50), 9)
    out = mechanism.release(ids_BT, torch.full((1, 50, HIDDEN), 1e4), torch.ones_like(ids_BT), generator=noise_source())
    assert out.h_BTD.norm(dim=-1).max() < 1.1 * (mechanism.clip or 0.0)
    statement = mechanism.statement()
    assert (statement.row, statement.guarantee, statement.mechanism) == ("metric", "pure", "snd")


def test_sap_gives_contributing_tokens_less_noise(context: NoiseContext, seeded: NoiseSource) -> None:
    params = {"eta": 1.0, "contributing": 0.3, "kept_noise": 0.25}
    mechanism = build(MechanismSpec(name="sap", params=params), context)
    assert isinstance(mechanism, SplitAndPrivatize)
    rows = 4000
    ids_BT = torch.full((rows, 5), 9)
    mask_BT = torch.tensor([[1, 1, 1, 1, 0]]).expand(rows, -1)
    importance_BT = torch.tensor([[0.1, 0.9, 0.2, 0.5, 1.0]]).expand(rows, -1)
    zeros = torch.zeros(rows, 5, HIDDEN)
    out = mechanism.release(ids_BT, zeros, mask_BT, importance_BT, generator=seeded).h_BTD.norm(dim=-1)
    # 30% of 4 real tokens, rounded up: the two most important; padding never counts.
    for place, scale in ((0, 1.0), (1, 0.25), (2, 1.0), (3, 0.25)):
        assert stats.kstest(out[:, place].double().numpy(), stats.gamma(HIDDEN, scale=scale).cdf).pvalue > 1e-4
    statement = mechanism.statement()
    assert (statement.row, statement.guarantee) == ("scale", "none")
    # Whether a token contributed shows in the length alone, beyond what equal noise between equal signals could show.
    assert certain_loss(out[:, 0].double().numpy(), out[:, 1].double().numpy()) > 2.5


def test_textobfuscator_is_pulled_clipped_and_laplacian(context: NoiseContext, seeded: NoiseSource) -> None:
    mechanism = build(MechanismSpec(name="textobfuscator", params={"pull": 0.5, "cluster_size": 20}), context)
    assert isinstance(mechanism, TextObfuscator)
    ids_BT = torch.tensor([[2, 9]]).expand(4000, -1)
    h_BTD = 0.3 * torch.randn(1, 2, HIDDEN, generator=torch.Generator().manual_seed(3)).expand(4000, -1, -1)
    out = mechanism.release(ids_BT, h_BTD, torch.ones_like(ids_BT), generator=seeded).h_BTD.double()
    centre_D = mechanism.targets.centre_KD[mechanism.targets.cluster_V[9]]
    signal_TD = torch.stack([h_BTD[0, 0], 0.5 * (h_BTD[0, 1] + centre_D)]).double()
    assert (signal_TD.norm(dim=-1) < (mechanism.clip or 0.0)).all()
    noise = (out - signal_TD).flatten().numpy()
    assert stats.kstest(noise[::7], stats.laplace(scale=mechanism.scale).cdf).pvalue > 1e-4
    assert np.sqrt((noise**2).mean() * HIDDEN) == pytest.approx(3.0 * context.typical_norm("cut"), rel=0.02)


def test_textobfuscator_keeps_its_bound_and_has_none_unclipped(context: NoiseContext, seeded: NoiseSource) -> None:
    """Worst direction of the L1 metric: the diagonal, where an L2 ball reaches farthest."""
    spec = {"clip": 0.05, "pull": 0.0, "cluster_size": 20, "noise_ratio": 0.1}
    mechanism = build(MechanismSpec(name="textobfuscator", params=spec), context)
    assert isinstance(mechanism, TextObfuscator)
    statement = mechanism.statement()
    bound = laplace_bound(mechanism.scale, 0.05, HIDDEN)
    assert (statement.row, statement.guarantee, statement.position_epsilon) == ("laplace", "pure", bound)
    count = 40_000
    ids_BT = torch.full((1, count), 9)
    out = [
        mechanism.release(ids_BT, torch.full((1, count, HIDDEN), x), torch.ones_like(ids_BT), generator=seeded).h_BTD[0]
        for x in (1e3, -1e3)
    ]
    edge = 0.05 / math.sqrt(HIDDEN)
    scores = [((x + edge).abs() - (x - edge).abs()).sum(dim=-1).double().numpy() / mechanism.scale for x in out]
    assert max(abs(score).max() for score in scores) <= bound * (1 + 1e-4)
    assert 0.0 < certain_loss(*scores) <= bound
    unclipped = build(MechanismSpec(name="textobfuscator", params={"clip_ratio": 0, "cluster_size": 20}), context)
    assert (unclipped.statement().row, unclipped.statement().guarantee) == ("unclipped", "none")


@pytest.fixture(scope="module")
def custext(context: NoiseContext) -> CusText:
    mechanism = build(MechanismSpec(name="custext", params={"epsilon": 2.0, "set_size": 12}), context)
    assert isinstance(mechanism, CusText)
    return mechanism


def test_custext_draws_from_the_own_set_with_the_exponential_mechanism(custext: CusText, seeded: NoiseSource) -> None:
    count, token = 40_000, 30
    ids_BT = torch.full((1, count), token)
    drawn = custext.sanitise(ids_BT, torch.ones(1, count, dtype=torch.bool), seeded)[0]
    place = int(custext.tables.place_V[token])
    (own,) = [row for row in custext.sets_GK.tolist() if place in row]
    unit_UD = custext.tables.unit_UD
    similar = (unit_UD[own] @ unit_UD[place]).double()
    score = (similar - similar.min()) / (similar.max() - similar.min())
    wanted = torch.softmax(2.0 / 2 * score, dim=0).numpy()
    counts = torch.bincount(drawn, minlength=VOCABULARY)[custext.context.usable_ids[own]].numpy()
    assert counts.sum() == count
    assert stats.chisquare(counts, wanted * count).pvalue > 1e-4


def test_custext_keeps_epsilon_inside_a_set_and_nothing_across(custext: CusText, seeded: NoiseSource) -> None:
    count = 60_000
    a, b = (int(custext.context.usable_ids[i]) for i in custext.sets_GK[0, :2])
    other = int(custext.context.usable_ids[custext.sets_GK[1, 0]])
    mask = torch.ones(1, count, dtype=torch.bool)
    seen = [
        torch.bincount(custext.sanitise(torch.full((1, count), i), mask, seeded)[0], minlength=VOCABULARY).numpy()
        for i in (a, b, other)
    ]
    assert 0.1 < certain_loss_of_counts(seen[0], seen[1]) <= 2.0
    assert certain_loss_of_counts(seen[0], seen[2]) > 5.0
    assert (custext.statement().row, custext.statement().guarantee) == ("cluster", "none")
    kept = custext.sanitise(torch.tensor([[2, 0, 3]]), torch.ones(1, 3, dtype=torch.bool), seeded)
    assert kept.tolist() == [[2, 0, 3]]
