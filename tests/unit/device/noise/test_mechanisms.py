"""none, dchi and gaussian: what they release, what they refuse and what they claim."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from privtune.device.noise.base import Mechanism
from privtune.device.noise.clipping import clip_rows
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.dchi import DChi
from privtune.device.noise.mechanisms.gaussian import Gaussian
from privtune.device.noise.randomness import NoiseSource, noise_source
from privtune.device.noise.registry import build
from privtune.device.privacy.bounds import dchi_loss, position_bound
from privtune.shared.errors import InvalidInput, NonFinite
from privtune.shared.job_spec import MechanismSpec
from tests.support.noise_contexts import HIDDEN


def make(context: NoiseContext, name: str, **params: float | str) -> Mechanism:
    return build(MechanismSpec(name=name, params=params), context)


def batch(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids_BT = torch.randint(5, 120, (3, 7), generator=torch.Generator().manual_seed(1))
    h_BTD = scale * torch.randn(3, 7, HIDDEN, generator=torch.Generator().manual_seed(2))
    mask_BT = torch.arange(7) < torch.tensor([[7], [4], [1]])
    return ids_BT, h_BTD, mask_BT


@pytest.mark.parametrize("name", ["none", "dchi", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_padding_is_zero_and_everything_is_float32(context: NoiseContext, name: str, dtype: torch.dtype) -> None:
    ids_BT, h_BTD, mask_BT = batch()
    h_BTD[~mask_BT] = torch.nan  # what the bottom leaves in padding must not matter
    mechanism = make(context, name)
    out = mechanism.release(ids_BT, h_BTD.to(dtype), mask_BT.long(), generator=noise_source())
    assert out.h_BTD.dtype == torch.float32
    assert torch.equal(out.mask_BT, mask_BT)
    assert out.h_BTD[~mask_BT].abs().sum() == 0
    assert (out.h_BTD[mask_BT].norm(dim=-1) > 0).all()
    assert not mechanism.shortens
    if name == "none":
        assert torch.equal(out.h_BTD[mask_BT], h_BTD.to(dtype).float()[mask_BT])


@pytest.mark.parametrize(("name", "params"), [("dchi", {"noise_ratio": 1e-6}), ("gaussian", {"epsilon": 1e4})])
def test_a_position_alone_is_released_as_within_its_record(
    context: NoiseContext, name: str, params: dict[str, float]
) -> None:
    ids_BT, h_BTD, _ = batch(scale=3.0)
    mechanism = make(context, name, **params)
    assert mechanism.by_position
    within, alone = (
        mechanism.release(ids, h, torch.ones_like(ids), generator=noise_source()).h_BTD
        for ids, h in ((ids_BT, h_BTD), (ids_BT[:, 4:], h_BTD[:, 4:]))
    )
    little = 8 * getattr(mechanism, "sigma", 1e-3)
    torch.testing.assert_close(alone, within[:, 4:], rtol=0, atol=little)
    assert alone.abs().max() > 2 * little


@pytest.mark.parametrize("name", ["privtune", "snd", "shared", "pool"])
def test_what_reads_more_than_the_vector_is_drawn_with_its_record(context: NoiseContext, name: str) -> None:
    assert not make(context, name).by_position


def test_known_bug_half_precision_sampling(context: NoiseContext) -> None:
    """float16 has a few thousand distinct magnitudes; float32 noise does not repeat."""
    ids_BT = torch.zeros(64, 16, dtype=torch.int64)
    out = make(context, "dchi", eta=1.0).release(
        ids_BT, torch.zeros(64, 16, HIDDEN, dtype=torch.float16), torch.ones_like(ids_BT), generator=noise_source()
    )
    assert len(out.h_BTD.flatten().unique()) > 0.98 * out.h_BTD.numel()


@pytest.mark.parametrize("name", ["dchi", "gaussian"])
def test_clip_comes_before_the_noise(context: NoiseContext, name: str) -> None:
    """Known bug: clipping only after the noise. Huge inputs must not show, and the noise stays unclipped."""
    ids_BT, h_BTD, mask_BT = batch(scale=1e6)
    mechanism = make(context, name, clip=1.0, **({"eta": 0.5} if name == "dchi" else {"epsilon": 1.0}))
    out = mechanism.release(ids_BT, h_BTD, mask_BT, generator=noise_source())
    norms = out.h_BTD[mask_BT].norm(dim=-1)
    assert (norms < 300).all()  # the input's 1e6 is gone
    assert (norms > 5).all()  # and the noise (64 or about 40 long) was not clipped to 1
    clean = make(context, name, clip=1.0, **({"eta": 1e9} if name == "dchi" else {"epsilon": 10_000.0, "delta": 0.5}))
    if name == "dchi":
        exact = clean.release(ids_BT, h_BTD, mask_BT, generator=noise_source()).h_BTD[mask_BT]
        assert torch.allclose(exact, clip_rows(h_BTD[mask_BT], 1.0), atol=1e-5)


def test_clip_never_exceeds_the_radius_and_keeps_short_vectors() -> None:
    h_BTD = torch.randn(4, 50, HIDDEN, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 8, 50)[:, None]
    clipped = clip_rows(h_BTD, 2.0)
    assert float(clipped.double().norm(dim=-1).max()) <= 2.0
    short = h_BTD.norm(dim=-1) < 1.9
    assert torch.equal(clipped[short], h_BTD[short])
    assert torch.equal(clip_rows(torch.zeros(2, 3), 1.0), torch.zeros(2, 3))


def test_release_is_signal_plus_noise_of_the_right_length(context: NoiseContext) -> None:
    ids_BT, h_BTD, mask_BT = batch(scale=0.01)
    mechanism = make(context, "dchi", eta=4.0)
    parts = [mechanism.release(ids_BT, h_BTD, mask_BT, generator=noise_source()).h_BTD[mask_BT] for _ in range(400)]
    noise = (torch.stack(parts) - h_BTD[mask_BT]).norm(dim=-1).flatten().double().numpy()
    assert stats.kstest(noise, stats.gamma(HIDDEN, scale=1 / 4.0).cdf).pvalue > 1e-4


def test_relative_settings_follow_the_model(context: NoiseContext) -> None:
    for injection in ("embedding", "cut"):
        mechanism = make(context, "dchi", noise_ratio=5.0, injection=injection)
        assert isinstance(mechanism, DChi)
        norm = context.typical_norm(injection)  # type: ignore[arg-type]
        assert HIDDEN / mechanism.eta == pytest.approx(5 * norm)
        assert mechanism.clip == pytest.approx(1.25 * norm)
        assert mechanism.injection == injection


def test_gaussian_noise_has_its_sigma(context: NoiseContext) -> None:
    mechanism = make(context, "gaussian", clip=1.0, epsilon=2.0)
    assert isinstance(mechanism, Gaussian)
    zeros = torch.zeros(50, 20, HIDDEN)
    ids_BT = torch.zeros(50, 20, dtype=torch.int64)
    out = mechanism.release(ids_BT, zeros, torch.ones_like(ids_BT), generator=noise_source())
    assert stats.kstest(out.h_BTD.flatten().numpy() / mechanism.sigma, "norm").pvalue > 1e-6


def test_empirical_loss_of_the_real_sampler_stays_under_the_bound(context: NoiseContext, seeded: NoiseSource) -> None:
    """Sample under x and x', histogram the most telling statistic, and compare frequencies with the bound."""
    eta, clip = 1.5, 0.4
    mechanism = make(context, "dchi", eta=eta, clip=clip)
    count = 60_000
    ids_BT = torch.zeros(1, count, dtype=torch.int64)
    axis = torch.zeros(HIDDEN)
    axis[3] = clip
    samples = [
        mechanism.release(ids_BT, x.expand(1, count, HIDDEN), torch.ones_like(ids_BT), generator=seeded).h_BTD[0]
        for x in (axis, -axis)
    ]
    score = [eta * ((s + axis).norm(dim=-1) - (s - axis).norm(dim=-1)) for s in samples]  # the exact log-ratio
    edges = torch.linspace(float(score[1].min()), float(score[0].max()), 30)
    bound = position_bound(eta, clip)
    assert bound == dchi_loss(eta, 2 * clip)
    for low, high in itertools.pairwise(edges):
        inside = [int(((s >= low) & (s < high)).sum()) for s in score]
        # Exact 99.99% limits of both frequencies: the estimate is above the bound only if the sampler is.
        if sum(inside) >= 50:
            for a, b in (inside, inside[::-1]):
                least = stats.beta.ppf(1e-4, a, count - a + 1) if a else 0.0
                most = stats.beta.ppf(1 - 1e-4, b + 1, count - b)
                assert math.log(max(least, 1e-300) / most) <= bound
    # And the typical loss is the stated one.
    mu = mechanism.statement().numbers["position_mu"]
    assert float(score[0].mean()) == pytest.approx(mu**2 / 2, rel=0.1)
    assert float(score[0].std()) == pytest.approx(mu, rel=0.1)


def test_bad_input_is_refused(context: NoiseContext) -> None:
    ids_BT, h_BTD, mask_BT = batch()
    mechanism = make(context, "dchi")
    with pytest.raises(InvalidInput, match="do not match"):
        mechanism.release(ids_BT[:, :3], h_BTD, mask_BT, generator=noise_source())
    with pytest.raises(InvalidInput, match="importance"):
        mechanism.release(ids_BT, h_BTD, mask_BT, torch.ones(2, 2), generator=noise_source())
    h_BTD[0, 0, 0] = torch.inf
    with pytest.raises(NonFinite, match="nothing was sent"):
        mechanism.release(ids_BT, h_BTD, mask_BT, generator=noise_source())


def test_release_leaves_its_input_alone(context: NoiseContext) -> None:
    ids_BT, h_BTD, mask_BT = batch()
    before = h_BTD.clone()
    make(context, "dchi").release(ids_BT, h_BTD, mask_BT, generator=noise_source())
    assert torch.equal(h_BTD, before)


def test_statements_name_their_row(context: NoiseContext) -> None:
    rows = {
        ("none", ()): ("none", "none"),
        ("dchi", ()): ("clipped", "pure"),
        ("dchi", (("clip_ratio", 0),)): ("unclipped", "none"),
        ("dchi", (("injection", "embedding"),)): ("metric", "pure"),
        ("dchi", (("injection", "embedding"), ("clip_ratio", 0))): ("metric", "metric"),
        ("gaussian", ()): ("gaussian", "approximate"),
    }
    for (name, params), (row, guarantee) in rows.items():
        statement = make(context, name, **dict(params)).statement()  # type: ignore[arg-type]
        assert (statement.row, statement.guarantee) == (row, guarantee)
        assert statement.mechanism == name
        assert (statement.position_epsilon is None) == (guarantee in ("none", "metric"))


def test_a_fixed_seed_withdraws_the_statement(context: NoiseContext, seeded: NoiseSource) -> None:
    mechanism = make(context, "dchi")
    assert mechanism.statement().guarantee == "pure"
    assert mechanism.statement(seeded).unsafe_seed
    mechanism.release(*batch(), generator=seeded)
    after = mechanism.statement(noise_source())
    assert after.unsafe_seed
    assert after.guarantee == "none"
    assert after.record_epsilon(1) is None
    assert "FIXED SEED" in after.text


def test_fingerprints_differ_between_settings(context: NoiseContext) -> None:
    prints = [
        make(context, "none").fingerprint(),
        make(context, "dchi").fingerprint(),
        make(context, "dchi", noise_ratio=7).fingerprint(),
        make(context, "dchi", clip_ratio=0).fingerprint(),
        make(context, "dchi", injection="embedding").fingerprint(),
        make(context, "gaussian").fingerprint(),
        make(context, "gaussian", epsilon=1).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert make(context, "dchi").fingerprint() == prints[1]
