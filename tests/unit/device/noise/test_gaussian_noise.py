"""Gaussian noise of bounded support: drawn from its law, no worse than the whole one, and what it hides."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from privtune.device.noise.gaussian_noise import AggregateLaw, GaussianNoise
from privtune.device.noise.randomness import noise_source
from privtune.device.noise.registry import build
from privtune.device.noise.tables.private_counts import LabelledRows, PrivateCounts
from privtune.device.privacy.bounds import gaussian_delta, gdp_epsilon
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import MechanismSpec
from tests.support.noise_contexts import HIDDEN, tiny_context

SIGMA = 2.0
VALUES = (0.0, 1.5, -1.5, 4.0, -9.0)


def law(centre, ratio):
    """The truncated Gaussian around a centre, by scipy."""
    ends = (np.array([-ratio, ratio]) * SIGMA - centre) / SIGMA
    return stats.truncnorm(*ends, loc=centre, scale=SIGMA)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("centre", VALUES)
def test_truncated_values_have_the_law_given_the_box(centre, ratio):
    noise = GaussianNoise(sigma=SIGMA, support="truncated", ratio=ratio)
    drawn = noise.release(torch.full((20_000,), centre), noise_source()).numpy()
    assert np.abs(drawn).max() <= noise.half_width
    assert stats.kstest(drawn, law(centre, ratio).cdf).pvalue > 1e-6


@pytest.mark.parametrize("centre", VALUES)
def test_rectified_values_are_whole_ones_moved_to_the_ends(centre):
    noise = GaussianNoise(sigma=SIGMA, support="rectified", ratio=1.0)
    drawn = noise.release(torch.full((20_000,), centre), noise_source()).double().numpy()
    for end, chance in ((-SIGMA, stats.norm.cdf(-SIGMA, centre, SIGMA)), (SIGMA, stats.norm.sf(SIGMA, centre, SIGMA))):
        assert stats.binomtest(int((drawn == end).sum()), len(drawn), chance).pvalue > 1e-6
    inside = drawn[np.abs(drawn) < SIGMA]
    assert stats.kstest(inside, law(centre, 1.0).cdf).pvalue > 1e-6


@pytest.mark.parametrize("ratio", [0.3, 1.0, 3.0])
def test_no_test_tells_truncated_releases_apart_better_than_whole_ones(ratio):
    """The claim that the module's docstring proves, at every threshold between many pairs of values."""
    level = stats.norm.cdf(np.linspace(-5, 5, 81))
    for here in np.linspace(-8, 8, 9):
        for there in here + np.array([0.01, 0.5, 2.0, 6.0]):
            threshold = law(here, ratio).ppf(level)
            reached = stats.norm.ppf(law(there, ratio).cdf(threshold))
            sure = (level > 1e-6) & (level < 1 - 1e-6) & np.isfinite(reached)
            assert (reached[sure] >= stats.norm.ppf(level[sure]) - (there - here) / SIGMA - 1e-5).all()


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_delta_is_below_that_of_whole_noise_and_zero_from_the_pure_bound_on(epsilon):
    here, there, ratio = -1.0, 1.5, 1.0

    def excess(y):
        return max(0.0, law(there, ratio).pdf(y) - np.exp(epsilon) * law(here, ratio).pdf(y))

    delta = integrate.quad(excess, -SIGMA, SIGMA, limit=200)[0]
    assert delta <= gaussian_delta(epsilon, SIGMA, there - here) + 1e-9
    pure = 2 * ratio * SIGMA * (there - here) / SIGMA**2
    ratios = law(there, ratio).logpdf(np.linspace(-SIGMA, SIGMA, 99)) - law(here, ratio).logpdf(
        np.linspace(-SIGMA, SIGMA, 99)
    )
    assert np.abs(ratios).max() <= pure


def test_noise_cut_off_around_the_signal_would_have_no_useful_delta():
    """Why the box is public: two inputs with supports of their own are told apart by what falls outside the other."""
    dim, radius, cut = 384, 1.0, 3.0  # in deviations
    shift = 2 * radius / np.sqrt(dim)
    common = stats.norm.cdf(cut) - stats.norm.cdf(-cut + shift)
    inside = (common / (stats.norm.cdf(cut) - stats.norm.cdf(-cut))) ** dim
    assert 1 - inside > 0.1  # no epsilon makes delta smaller than this


@pytest.mark.parametrize("support", ["rectified", "truncated"])
def test_fisher_information_is_that_of_the_law_and_largest_in_the_middle(support):
    noise = GaussianNoise(sigma=SIGMA, support=support, ratio=1.0)
    centres = np.linspace(-6, 6, 25)
    found = noise.fisher(torch.from_numpy(centres)).numpy()
    for centre, value in zip(centres, found, strict=True):
        if support == "truncated":
            assert value == pytest.approx(law(centre, 1.0).var() / SIGMA**2, rel=1e-4)
        else:
            step = 1e-4
            chances = [
                np.array([stats.norm.cdf(-SIGMA, at, SIGMA), *stats.norm.pdf(GRID, at, SIGMA) * (GRID[1] - GRID[0])])
                for at in (centre - step, centre + step)
            ]
            chances = [np.array([*one, 1 - one.sum()]) for one in chances]
            middle = (chances[0] + chances[1]) / 2
            whole = (((chances[1] - chances[0]) / (2 * step)) ** 2 / middle.clip(1e-300)).sum() * SIGMA**2
            assert value == pytest.approx(whole, rel=2e-2)
    assert noise.most_fisher == pytest.approx(found.max())
    assert found.argmax() == 12
    assert (found > 0).all()
    assert noise.most_fisher < 1
    assert (np.diff(found[12:]) < 0).all()


GRID = np.linspace(-SIGMA, SIGMA, 2001)[:-1] + SIGMA / 2000


def test_a_value_too_far_outside_a_truncated_support_is_refused():
    with pytest.raises(InvalidInput, match="support_ratio"):
        GaussianNoise(sigma=0.01, support="truncated").release(torch.tensor([1.0]), noise_source())


@pytest.mark.parametrize("support", ["rectified", "truncated"])
def test_the_statement_keeps_the_row_of_whole_noise_and_names_no_figure_of_the_records(context, support):
    whole = build(MechanismSpec(name="gaussian"), context)
    bounded = build(MechanismSpec(name="gaussian", params={"support": support}), context)
    one, other = whole.statement(), bounded.statement()
    for name in ("row", "guarantee", "position_epsilon", "position_mu", "delta", "caveats"):
        assert getattr(one, name) == getattr(other, name)
    assert "bounds nothing else" in other.text
    assert ("position_pure_bound" in other.numbers) == (support == "truncated")
    ids_BT = torch.full((1, 5), 9)
    h_BTD = torch.ones(1, 5, HIDDEN)
    out = bounded.release(ids_BT, h_BTD, torch.ones_like(ids_BT), generator=noise_source())
    assert out.h_BTD.abs().max() <= bounded.noise.half_width
    assert 0 < float(out.fisher_B()) < bounded.noise.most_fisher
    assert whole.fingerprint() != bounded.fingerprint()


@pytest.mark.parametrize("kind", ["whole", "rectified", "truncated"])
def test_word_counts_take_each_form_and_say_their_delta(bottom, tmp_path, kind):
    usable, words = torch.arange(5, 3000), 4
    rows = [np.array(row, dtype=np.int32) for row in ([10, 11], [10, 12])]
    records = LabelledRows(rows=rows, labels=np.array([0, 1]), classes=2)
    counts = PrivateCounts(folder=tmp_path, fingerprint="d", source=noise_source(), records=records)
    noise = AggregateLaw(kind=kind, delta=1e-6, ratio=2.0)
    drawn, variance = counts(usable, 0.5, words, noise)
    normal = noise.gaussian(0.5, np.sqrt(2 * words))
    assert variance == normal.sigma**2
    assert gdp_epsilon(np.sqrt(2 * words) / normal.sigma, 1e-6) == pytest.approx(0.5)
    assert (np.abs(drawn).max() > 2 * normal.sigma) == (kind == "whole")
    assert counts.shares(usable, 0.5, words, noise) == pytest.approx([0.75**0.5] * 2)
    assert not np.array_equal(drawn, counts(usable, 0.5, words)[0])
    params = {"groups": "private", "counts_noise": kind, "cluster_size": 8, "epsilon_cluster": 1.0}
    own = PrivateCounts(folder=tmp_path, fingerprint="e", source=noise_source(), records=records)
    mechanism = build(MechanismSpec(name="shared", params=params), tiny_context(bottom, private_counts=own))
    assert (mechanism.statement().fitted_epsilon, mechanism.statement().fitted_delta) == (1.0, 1e-6)
    assert "except with probability 1e-06" in mechanism.statement().text


@pytest.mark.parametrize("support", ["whole", "rectified", "truncated"])
def test_the_likelihood_is_the_logarithm_of_the_law(support):
    noise = GaussianNoise(sigma=2.0, support=support, ratio=1.5)
    centre = torch.tensor([[-1.0], [0.5], [7.0]], dtype=torch.float64)
    end = 30.0 if support == "whole" else 3.0 - 3e-3
    inside = torch.linspace(-end, end, 20_001, dtype=torch.float64)
    density = noise.log_likelihood(inside, centre).exp() / (2.0 * math.sqrt(2 * math.pi))
    mass = torch.trapezoid(density, inside, dim=1)
    if support == "rectified":  # at its edges there is a chance, no density
        edges = noise.log_likelihood(torch.tensor([-3.0, 3.0], dtype=torch.float64), centre).exp()
        mass += edges.sum(1)
    assert mass.tolist() == pytest.approx([1, 1, 1], abs=2e-2)
