"""What a record itself loses, as a number of the statement's worst rows."""

import numpy as np
import pytest
import torch

from privtune.device.noise.registry import build
from privtune.shared.job_spec import MechanismSpec
from tests.support.noise_contexts import HIDDEN
from tests.support.privacy_losses import certain_loss

ADDED = {
    "dchi": {"noise_ratio": 12.0},
    "gaussian": {"epsilon": 2.0},
    "textobfuscator": {"noise_ratio": 12.0, "pull": 0.0},
    "privtune": {"noise_ratio": 12.0, "shift": 0.0, "importance": "gain", "importance_from": "public"},
    "pool": {"clusters": False, "noise_ratio": 12.0, "size": 2},
}


def made(context, name, **params):
    return build(MechanismSpec(name=name, params=params), context)


def released(mechanism, h_TD, source, copies=1):
    """own rows of a record of these vectors, and its releases."""
    ids_BT = torch.full((copies, len(h_TD)), 9)
    h_BTD, mask_BT = h_TD.expand(copies, -1, -1), torch.ones_like(ids_BT)
    out = mechanism.release(ids_BT, h_BTD, mask_BT, torch.ones(ids_BT.shape), generator=source)
    return float(mechanism.own_rows(out)[0]), out.h_BTD


def a_row(direction, length):
    return torch.nn.functional.one_hot(torch.tensor([direction]), HIDDEN).float() * length


@pytest.mark.parametrize("name", ADDED)
def test_a_record_of_far_vectors_loses_all_and_one_in_the_middle_half(name, context, seeded):
    mechanism = made(context, name, **ADDED[name])
    middle, _ = released(mechanism, torch.zeros(4, HIDDEN), seeded)
    # In L1 the far points of the ball are those with equal coordinates.
    far, _ = released(mechanism, torch.full((4, HIDDEN), 1e3), seeded)
    rows = 4 / ADDED[name].get("size", 1)
    half = 0.25 if name == "gaussian" else 0.5  # mu adds up in squares
    assert (middle, far) == pytest.approx((half * rows, rows), rel=1e-4)


@pytest.mark.parametrize("name", ["dchi", "gaussian", "textobfuscator"])
def test_the_loss_of_the_real_sampler_against_any_other_record_stays_below_its_own(name, context, seeded):
    """The middle of the ball against its rim: half the worst case, and the sampler keeps to it."""
    mechanism = made(context, name, **ADDED[name])
    statement = mechanism.statement()
    own, here = released(mechanism, torch.zeros(1, HIDDEN), seeded, 40_000)
    _, there = released(mechanism, a_row(3, 1e3), seeded, 40_000)
    score, other = (h_BTD[:, 0, 3].double().numpy() for h_BTD in (here, there))
    bound = statement.record_epsilon(own)
    assert bound < statement.record_epsilon(1)
    assert 0 < certain_loss(score, other) <= bound


def test_under_randomised_response_special_tokens_lose_nothing(context, seeded):
    ids_BT = torch.tensor([[2, 9, 10, 11, 3, 0]])
    h_BTD, mask_BT = torch.zeros(1, 6, HIDDEN), torch.tensor([[1, 1, 1, 1, 1, 0]])
    rr = {"cluster_size": 20, "epsilon_cluster": 1.0}
    for name, params, words in (
        ("shared", rr, 3),
        ("pool", rr | {"size": 2}, 1.5),  # rows of two words each
        ("codes", {"codes": 4, "dims": 2, "epsilon_code": 1.0}, 3),
        ("shared", {"cluster_size": 20}, 5),
    ):
        mechanism = made(context, name, **params)
        out = mechanism.release(ids_BT, h_BTD, mask_BT, generator=seeded)
        assert mechanism.own_rows(out).tolist() == [words]


def test_no_record_amounts_to_more_than_its_rows(context, seeded):
    for name, params in ADDED.items():
        mechanism = made(context, name, **params)
        h_TD = torch.from_numpy(np.random.default_rng(0).normal(size=(6, HIDDEN)).astype(np.float32)) * 10
        own, h_BTD = released(mechanism, h_TD, seeded)
        assert own <= h_BTD.shape[1]
