"""Which setting is taken: by the unfavourable end of the interval, and what is said where none will do."""

from __future__ import annotations

import pytest

from privtune.device.audit.tuning.choice import (
    Estimate,
    Recovered,
    Setting,
    Wish,
    best,
    between,
    choose,
    short,
    shown,
    span,
)


def setting(value, recovered, drop, *, half=0.01, attack="EIA-1 bayes (adaptive)", accuracy=0.8):
    """A setting whose intervals reach `half` to both sides; of all words twice as much is recovered."""

    def figure(share):
        return Recovered(value=share, low=share - half, high=share + half, floor=0.02, attack=attack)

    return Setting(
        value=value,
        recovered={"content": figure(recovered), "all": figure(2 * recovered)},
        accuracy=Estimate(value=accuracy, low=accuracy - half, high=accuracy + half),
        drop=Estimate(value=drop, low=drop - half, high=drop + half),
    )


CLEAN = setting("none", 0.99, 0.0, half=0.0)
# More noise hides more and costs more.
GRID = [
    setting(1.0, 0.90, 0.00),
    setting(3.0, 0.40, 0.02),
    setting(10.0, 0.15, 0.06),
    setting(30.0, 0.03, 0.20),
]


def wish(recovery=None, drop=None, words="content"):
    return Wish(words=words, max_recovery=recovery, max_drop=drop)


def chosen(settings, limits, clean=CLEAN, majority=0.5):
    return choose(settings, limits, clean, majority)


@pytest.mark.parametrize(
    ("limits", "value"),
    [
        (wish(recovery=0.17), 10.0),  # of 10 and 30 the one that costs less
        (wish(recovery=0.5), 3.0),
        (wish(drop=0.08), 10.0),  # of 1, 3 and 10 the one that hides most
        (wish(recovery=0.5, drop=0.1), 10.0),  # of 3 and 10 the one that hides more
        (wish(recovery=0.5, words="all"), 10.0),
    ],
)
def test_the_best_of_what_keeps_every_limit_is_chosen(limits, value):
    choice = chosen(GRID, limits)
    assert choice.met
    assert choice.setting.value == value
    assert choice.remarks == ()


def test_the_whole_interval_must_keep_the_limit():
    narrow, wide = setting(10.0, 0.095, 0.01, half=0.004), setting(10.0, 0.095, 0.01, half=0.02)
    assert chosen([narrow], wish(recovery=0.1)).met
    choice = chosen([wide], wish(recovery=0.1))
    assert not choice.met
    assert any("more dev records" in line for line in choice.remarks)
    assert not chosen([setting(1.0, 0.1, 0.025, half=0.01)], wish(drop=0.03)).met


def test_where_none_will_do_the_nearest_is_named_with_what_limits_it():
    choice = chosen(GRID[:2], wish(recovery=0.1))
    assert (choice.met, choice.setting.value) == (False, 3.0)
    assert "EIA-1 bayes (adaptive) still names 40.0% [39.0, 41.0] of content words; at most 10%" in choice.remarks[0]
    assert "No setting that was tried hides enough" in choice.remarks[1]
    choice = chosen(GRID[2:], wish(drop=0.03))
    assert (choice.met, choice.setting.value) == (False, 10.0)
    assert "It loses 6.0 points [5.0, 7.0] of accuracy; at most 3 are allowed." in choice.remarks[0]
    assert "keeps enough accuracy" in choice.remarks[1]


def test_limits_that_only_different_settings_keep_are_told_as_such():
    choice = chosen(GRID, wish(recovery=0.1, drop=0.03))
    assert (choice.met, choice.setting.value) == (False, 10.0)  # 6 points beyond one, 4 beyond the other
    assert choice.remarks[-1].startswith("Settings that surely hide enough may lose too much")
    assert not any("No setting" in line for line in choice.remarks)


def test_attacks_that_fail_without_noise_prove_nothing():
    blind = setting("none", 0.0, 0.0, half=0.0)
    choice = chosen([setting(1.0, 0.0, 0.0, half=0.0)], wish(recovery=0.1), clean=blind)
    assert not choice.met
    assert any("can't tell settings apart" in line for line in choice.remarks)
    weak = chosen(GRID, wish(recovery=0.17), clean=setting("none", 0.7, 0.0))
    assert weak.met
    assert any("a better attacker may recover more" in line for line in weak.remarks)


def test_an_accuracy_that_guessing_reaches_is_named():
    useless = setting(30.0, 0.01, 0.3, accuracy=0.52)
    assert any("52.0%" in line for line in chosen([useless], wish(recovery=0.1), majority=0.52).remarks)
    assert chosen([useless], wish(recovery=0.1), majority=0.4).remarks == ()


@pytest.mark.parametrize(
    ("settings", "limits", "value"),
    [
        (GRID, wish(recovery=0.1), 17.3),  # 10 hides too little, 30 will do: less noise may, too
        (GRID, wish(drop=0.03), 5.48),  # 3 will do, 10 costs too much
        (GRID, wish(recovery=0.1, drop=0.1), 17.3),  # 10 hides too little, 30 costs too much
        (GRID, wish(recovery=0.5, drop=0.08), 17.3),  # 10 will do and hides more than 3
        (GRID[:2], wish(recovery=0.1), None),  # nothing hides enough: nothing to look between
        (GRID[3:], wish(recovery=0.1), None),
    ],
)
def test_refining_looks_between_what_keeps_and_what_does_not(settings, limits, value):
    assert between(settings, limits, whole=False) == value


def test_refining_keeps_to_whole_numbers_and_ends_between_neighbours():
    grid = [setting(4, 0.03, 0.0), setting(16, 0.5, 0.0)]
    assert between(grid, wish(recovery=0.1), whole=True) == 8
    grid = [setting(4, 0.03, 0.01), setting(5, 0.5, 0.0)]
    assert between(grid, wish(recovery=0.1), whole=True) is None
    grid = [setting(0.0, 0.5, 0.0), setting(1.0, 0.03, 0.1)]
    assert between(grid, wish(recovery=0.1), whole=False) == 0.5
    named = [setting("centre", 0.03, 0.1), setting("mixture", 0.5, 0.0)]
    assert best(named, wish(recovery=0.1)).value == "centre"
    assert between(named, wish(recovery=0.1), whole=False) is None


def test_refining_closes_in_on_the_border():
    def measured(value):  # recovery falls as 1 / value: 0.1 at 10
        return setting(value, 1 / value, value / 1000, half=0.0)

    grid = [measured(2.0), measured(50.0)]
    for _ in range(8):
        grid.append(measured(between(grid, wish(recovery=0.1), whole=False)))
    assert 10.0 <= best(grid, wish(recovery=0.1)).value < 10.5


def test_figures_and_values_are_written_as_they_are_typed():
    assert [shown(value) for value in (3, 3.0, 2.5, True, "centre")] == ["3", "3", "2.5", "true", "centre"]
    estimate = Estimate(value=0.123, low=-0.011, high=0.2)
    assert span(estimate) == "12.3% [-1.1, 20.0]"
    assert span(estimate, "points") == "12.3 points [-1.1, 20.0]"
    assert short(estimate) == "12.3 [-1, 20]"
