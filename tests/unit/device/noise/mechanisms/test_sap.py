"""`sap`: contributing tokens get less noise, which leaves no bound."""

from __future__ import annotations

import torch
from scipy import stats

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.sap import SplitAndPrivatize
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.registry import build
from privtune.shared.job_spec import MechanismSpec
from tests.support.noise_contexts import HIDDEN
from tests.support.privacy_losses import certain_loss


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
