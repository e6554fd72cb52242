"""The one number of a zeroth-order step: clipped, noised as the statement says, drawn once."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from privtune.device.noise.randomness import noise_source
from privtune.device.privacy.bounds import gdp_epsilon
from privtune.device.privacy.statements import SlopeStatement
from privtune.device.release.slope_store import SlopeStore
from privtune.device.release.slopes import Slopes
from privtune.shared.errors import InvalidInput

STATEMENT = SlopeStatement(epsilon=2.0, delta=1e-5, clip=0.5, times=3)


@pytest.fixture
def slopes(tmp_path):
    with contextlib.closing(SlopeStore(tmp_path)) as store:
        yield Slopes(statement=STATEMENT, store=store, source=noise_source())


def test_the_noise_is_what_the_claim_needs_and_slopes_are_clipped(slopes):
    sent = [slopes.released(step, torch.tensor([9.0, -9.0, 0.25, 7.0], dtype=torch.float64)) for step in range(150)]
    noise = (4 * np.array(sent) - 0.75) / STATEMENT.sigma
    assert stats.kstest(noise, "norm").pvalue > 1e-6
    steps = 4 * np.array(sent) / STATEMENT.sigma * 1024
    assert np.abs(steps - steps.round()).max() < 1e-6, "low bits of the sum could be told from those of the noise"


@pytest.mark.parametrize("support", ["rectified", "truncated"])
def test_noise_of_bounded_support_has_the_law_of_its_name(tmp_path, support):
    claim = replace(STATEMENT, support=support, ratio=1.5)
    with contextlib.closing(SlopeStore(tmp_path)) as store:
        slopes = Slopes(statement=claim, store=store, source=noise_source())
        sent = np.array([2 * slopes.released(step, torch.full((2,), 0.5)) for step in range(300)]) / claim.sigma
    assert np.abs(sent).max() <= 1.5 + 1e-3
    centre = 1 / claim.sigma
    inside = sent[np.abs(sent) < 1.5 - 1e-3]
    assert stats.kstest(inside, stats.truncnorm(-1.5 - centre, 1.5 - centre, loc=centre).cdf).pvalue > 1e-7
    mass = stats.norm.cdf(1.5 - centre) - stats.norm.cdf(-1.5 - centre)
    share = len(inside) / 300
    assert abs(share - (mass if support == "rectified" else 1)) < 5 * 0.5 / np.sqrt(300)


def test_a_truncated_support_that_can_not_hold_the_sums_is_refused_before_any_slope(tmp_path):
    with contextlib.closing(SlopeStore(tmp_path)) as store:
        slopes = Slopes(statement=replace(STATEMENT, support="truncated"), store=store, source=noise_source())
        slopes.check(16)
        with pytest.raises(InvalidInput, match="raise support_ratio or use support=rectified"):
            slopes.check(1000)
        replace(slopes, statement=replace(STATEMENT, support="rectified")).check(1000)
        assert store.size == 0


def test_a_step_is_drawn_once_and_not_again_after_a_restart(slopes, tmp_path):
    first = slopes.released(7, torch.zeros(4))
    assert slopes.released(7, torch.ones(4)) == first
    with contextlib.closing(SlopeStore(tmp_path)) as again:
        assert again[7] == first
        assert again.keep(7, 0.0, np.zeros(4, dtype=np.float32)) == first
        assert again.first(8) == []
        assert again.size == 1
        assert again.sizes(7).tolist() == [0.0] * 4


def test_epsilon_is_exact_for_all_steps_together_and_less_for_some():
    assert STATEMENT.epsilon_after(3) == pytest.approx(2.0)
    assert STATEMENT.epsilon_after(1) < 1.2
    # A record replaced in three sums moves them by 2 * clip each: three Gaussian mechanisms, composed.
    assert gdp_epsilon(np.sqrt(3) * 2 * 0.5 / STATEMENT.sigma, 1e-5) == pytest.approx(2.0)


def test_a_record_of_small_slopes_loses_less_and_none_more_than_the_worst_case():
    def own(*sizes):
        (loss,) = STATEMENT.own_epsilons(np.sqrt([sum((size + 0.5) ** 2 for size in sizes)]))
        return loss

    assert own(0.5, 0.5, 0.5) == pytest.approx(2.0)
    assert own(0.0, 0.0, 0.0) == pytest.approx(gdp_epsilon(np.sqrt(3) * 0.5 / STATEMENT.sigma, 1e-5), rel=1e-2)
    assert own(0.1) < own(0.1, 0.2) < own(0.1, 0.2, 0.3) < 2.0


@pytest.mark.parametrize(("epsilon", "delta", "clip", "times"), [(2.0, 1e-5, 0.5, 3), (8.0, 1e-6, 1.0, 10)])
def test_the_claim_is_that_of_a_kept_accountant(epsilon, delta, clip, times):
    """Google's accountant, by numerical composition of privacy loss distributions."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    claim = SlopeStatement(epsilon=epsilon, delta=delta, clip=clip, times=times)
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(claim.sigma / (2 * clip)), times)
    assert accountant.get_epsilon(delta) == pytest.approx(epsilon, rel=1e-6)


def test_a_fixed_seed_claims_nothing():
    unsafe = SlopeStatement(epsilon=2.0, delta=1e-5, clip=0.5, times=3, unsafe_seed=True)
    assert "FIXED SEED" in unsafe.lines()[0]
    assert "No gradient leaves" in STATEMENT.lines()[0]
    assert "with rectified (within 3 deviations of 0) Gaussian" in replace(STATEMENT, support="rectified").lines()[0]
