"""`snd`: embeddings are clipped before the noise."""

from __future__ import annotations

import torch

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.snd import SplitNDenoise
from privtune.device.noise.randomness import noise_source
from privtune.device.noise.registry import build
from privtune.shared.job_spec import MechanismSpec
from tests.support.noise_contexts import HIDDEN


def test_snd_clips_embeddings_before_the_noise(context: NoiseContext) -> None:
    mechanism = build(MechanismSpec(name="snd", params={"noise_ratio": 0.001}), context)
    assert isinstance(mechanism, SplitNDenoise)
    assert mechanism.injection == "embedding"
    ids_BT = torch.full((1, 50), 9)
    out = mechanism.release(ids_BT, torch.full((1, 50, HIDDEN), 1e4), torch.ones_like(ids_BT), generator=noise_source())
    assert out.h_BTD.norm(dim=-1).max() < 1.1 * (mechanism.clip or 0.0)
    statement = mechanism.statement()
    assert (statement.row, statement.guarantee, statement.mechanism) == ("metric", "pure", "snd")
