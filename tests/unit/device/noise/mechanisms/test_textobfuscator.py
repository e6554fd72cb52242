"""`textobfuscator`: sampled as described, and bounded if clipped."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.textobfuscator import TextObfuscator
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.registry import build
from privtune.device.privacy.bounds import laplace_bound
from privtune.shared.job_spec import MechanismSpec
from tests.support.noise_contexts import HIDDEN
from tests.support.privacy_losses import certain_loss


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
