"""`custext`: the exponential mechanism within an output set, no bound across."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.custext import CusText
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.registry import build
from privtune.shared.job_spec import MechanismSpec
from tests.support.noise_contexts import VOCABULARY
from tests.support.privacy_losses import certain_loss_of_counts


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
