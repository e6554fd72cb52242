"""Randomised labels as maths: how each draw is distributed, and what several draws of a label cost, exactly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privtune.device.privacy import bounds as p
from privtune.device.privacy.statements import LabelStatement
from privtune.shared.errors import InvalidInput

epsilons = st.floats(0.05, 8)


@settings(deadline=None)
@given(epsilon=epsilons, other=epsilons, k=st.integers(2, 100))
def test_the_truth_is_that_of_randomised_response_and_multiplies(epsilon: float, other: float, k: int) -> None:
    truth = p.label_truth(epsilon, k)
    assert truth + (1 - truth) / k == pytest.approx(p.krr_keep_probability(epsilon, k))

    def matrix(t: float) -> np.ndarray:
        return t * np.eye(k) + (1 - t) / k

    two = matrix(truth) @ matrix(p.label_truth(other, k))
    assert two == pytest.approx(matrix(truth * p.label_truth(other, k)))


def chained(label: int, order: tuple[float, ...], k: int) -> dict[tuple[int, ...], float]:
    """Exact joint distribution of the draws of these epsilons, made in this order, of one label."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for number, epsilon in enumerate(order):
        known = dict(zip(order[:number], range(number), strict=True))
        nearer = min((e for e in known if e > epsilon), default=None)
        farther = max((e for e in known if e < epsilon), default=None)
        longer: dict[tuple[int, ...], float] = {}
        for drawn, chance in chances.items():
            chance_1C = p.label_distributions(
                p.label_truth(epsilon, k),
                k,
                np.array([label if nearer is None else drawn[known[nearer]]]),
                np.array([1.0 if nearer is None else p.label_truth(nearer, k)]),
                np.array([0 if farther is None else drawn[known[farther]]]),
                np.array([0.0 if farther is None else p.label_truth(farther, k)]),
            )
            longer |= {(*drawn, new): chance * float(chance_1C[0, new]) for new in range(k)}
        chances = longer
    return chances


@settings(deadline=None)
@given(order=st.lists(epsilons, min_size=1, max_size=4, unique=True).map(tuple), k=st.integers(2, 3))
def test_draws_of_one_label_cost_the_largest_epsilon_in_whatever_order(order: tuple[float, ...], k: int) -> None:
    joint = [chained(label, order, k) for label in range(k)]
    worst = max(
        abs(math.log(one[outcome] / other[outcome]))
        for one, other in itertools.permutations(joint, 2)
        for outcome in itertools.product(range(k), repeat=len(order))
        if one[outcome] or other[outcome]  # for two nearly equal epsilons the chance of unlike draws rounds to zero
    )
    assert worst == pytest.approx(max(order), rel=1e-6)
    for number, epsilon in enumerate(order):
        kept = sum(chance for outcome, chance in joint[0].items() if outcome[number] == 0)
        assert kept == pytest.approx(p.krr_keep_probability(epsilon, k))


def test_one_class_and_no_epsilon_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 2 classes"):
        p.label_truth(1.0, 1)
    with pytest.raises(InvalidInput, match="epsilon"):
        p.label_truth(0.0, 2)


def test_the_statement_names_its_figure_and_withdraws_it_for_a_fixed_seed() -> None:
    claim, *caveats = LabelStatement(epsilon=2.0, classes=4).lines()
    assert "at most 2 nats" in claim
    assert f"{p.krr_keep_probability(2.0, 4):.3g}" in claim
    assert any("without label_epsilon" in caveat for caveat in caveats)
    assert "Nothing is claimed" in LabelStatement(epsilon=2.0, classes=4, unsafe_seed=True).lines()[0]
