"""The sampler against textbook distributions; significance 1e-4 per test with a fixed seed, so it is stable."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from privtune.device.noise.randomness import UNSAFE_SEED_ENV, NoiseSource, OsNoise, noise_source
from privtune.shared.errors import InvalidInput, PolicyRefused

ALPHA = 1e-4
DIMS = [2, 16, 384, 768]


def test_normals_are_normal(seeded: NoiseSource) -> None:
    z = seeded.normal(200_001).numpy()
    assert stats.kstest(z, "norm").pvalue > ALPHA
    assert z.dtype == "float32"
    # Each half of Box-Muller and their pairing.
    assert abs(stats.pearsonr(z[:100_000], z[100_000:200_000])[0]) < 0.02


def test_gamma_and_uniform_and_choice(seeded: NoiseSource) -> None:
    for shape in (1.0, 2.5, 384.0):
        assert stats.kstest(seeded.gamma(shape, 20_000).numpy(), stats.gamma(shape).cdf).pvalue > ALPHA
    assert stats.kstest(seeded.uniform(20_000).numpy(), "uniform").pvalue > ALPHA
    with pytest.raises(InvalidInput):
        seeded.gamma(0.5, 3)
    weights = torch.tensor([1.0, 0.0, 3.0, 4.0])
    counts = torch.bincount(seeded.choice(weights.expand(40_000, 4)), minlength=4).numpy()
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]], [5_000, 15_000, 20_000]).pvalue > ALPHA
    integers = seeded.integers(5, 20_000)
    assert stats.chisquare(torch.bincount(integers, minlength=5).numpy()).pvalue > ALPHA


@pytest.mark.parametrize("dim", DIMS)
def test_radius_is_gamma_of_the_dimension(dim: int, seeded: NoiseSource) -> None:
    eta = 3.5
    radius = seeded.dchi(eta, 4, 1000, dim).norm(dim=-1).flatten().double().numpy()
    assert stats.kstest(radius, stats.gamma(dim, scale=1 / eta).cdf).pvalue > ALPHA


@pytest.mark.parametrize("dim", DIMS)
def test_direction_is_isotropic_and_independent_of_the_radius(dim: int, seeded: NoiseSource) -> None:
    count = 8000
    z = seeded.dchi(1.0, count, dim).double()
    radius = z.norm(dim=-1, keepdim=True)
    u = z / radius
    # Mean direction: count * dim * ||mean||^2 is close to chi-squared with dim degrees of freedom.
    mean_statistic = float(count * dim * u.mean(dim=0).square().sum())
    assert stats.chi2(dim).sf(mean_statistic) > ALPHA
    # Second moments: each coordinate carries 1/dim of the energy (variance of u_i^2 is 2(d-1)/(d^2(d+2))).
    spread = (2 * (dim - 1) / (dim**2 * (dim + 2)) / count) ** 0.5
    assert float((u.square().mean(dim=0) - 1 / dim).abs().max()) < 6 * spread
    # Projections on the axes, the diagonal and a slope follow (1 + cos) / 2 ~ Beta((d-1)/2, (d-1)/2).
    axes = torch.eye(dim, dtype=torch.float64)[:2]
    slopes = torch.stack([torch.ones(dim, dtype=torch.float64), torch.arange(dim, dtype=torch.float64)])
    for axis in torch.cat([axes, slopes / slopes.norm(dim=-1, keepdim=True)]):
        half = (1 + u @ axis) / 2
        projected = stats.beta((dim - 1) / 2, (dim - 1) / 2)
        assert stats.kstest(half.numpy(), projected.cdf).pvalue > ALPHA
        assert abs(stats.spearmanr(radius.squeeze().numpy(), half.numpy())[0]) < 0.06


def test_known_bug_gamma_times_uniform_per_coordinate(seeded: NoiseSource) -> None:
    """Published code scales each coordinate by the Gamma draw: a norm about sqrt(D/3), 16 times, too large at 768."""
    dim, eta = 768, 2.0
    mean = float(seeded.dchi(eta, 500, dim).norm(dim=-1).mean())
    assert mean == pytest.approx(dim / eta, rel=0.01)
    wrong = stats.gamma(dim, scale=1 / eta).rvs((500, 1), random_state=1) * stats.uniform(-1, 2).rvs(
        (500, dim), random_state=2
    )
    assert (wrong**2).sum(-1).mean() ** 0.5 / mean == pytest.approx(16, rel=0.02)


def test_known_bug_one_radius_for_the_whole_batch(seeded: NoiseSource) -> None:
    radius = seeded.dchi(1.0, 8, 16, 32).norm(dim=-1)
    assert len(radius.flatten().unique()) == 8 * 16
    assert float(radius.std()) == pytest.approx(32**0.5, rel=0.2)


def test_fresh_randomness_each_time_and_from_the_os() -> None:
    source = noise_source()
    assert isinstance(source, OsNoise)
    assert not source.unsafe
    torch.manual_seed(0)
    first = source.normal(64)
    torch.manual_seed(0)
    assert not torch.equal(first, source.normal(64))


def test_fixed_seed_is_refused_outside_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(UNSAFE_SEED_ENV, raising=False)
    with pytest.raises(PolicyRefused, match="subtract the noise"):
        noise_source(unsafe_seed=1)
    monkeypatch.setenv(UNSAFE_SEED_ENV, "1")
    assert torch.equal(noise_source(unsafe_seed=1).normal(9), noise_source(unsafe_seed=1).normal(9))
