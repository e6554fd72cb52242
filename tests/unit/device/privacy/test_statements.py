"""Statements: what each claims, in words and figures, and that nothing is claimed without a bound."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from privtune.device.privacy import bounds as p
from privtune.device.privacy.pair_report import pair_report
from privtune.device.privacy.statements import Statement, added_noise, no_bound, shared_target
from privtune.device.privacy.statements.fitted_tables import fitted_statement
from privtune.device.privacy.statements.surrogate import surrogate_statement
from privtune.shared.errors import InvalidInput


def test_scale_importance_gets_no_bound() -> None:
    """The ratio of two densities with different scales grows without bound."""
    far = np.array([1e2, 1e4, 1e6])
    ratios = far / 0.5 - far / 0.6
    assert (np.diff(ratios) > 0).all()
    assert ratios[-1] > 1e5
    statement = no_bound.no_bound_statement(name="privtune", row="scale", injection="cut", numbers={}, why="because.")
    assert statement.guarantee == "none"
    assert statement.record_epsilon(1) is None
    with pytest.raises(InvalidInput):
        Statement(mechanism="x", row="scale", guarantee="pure", injection="cut", text="", position_epsilon=math.inf)


def test_clusters_are_bounded_across_with_noise_alone() -> None:
    facts: dict[str, Any] = {"name": "shared", "injection": "cut", "clusters": 9, "least": 4, "guessed": 0.1, "dim": 8}
    clean = shared_target.cluster_statement(**facts, eta=None, diameter=1.5)
    assert (clean.guarantee, clean.position_epsilon) == ("none", None)
    assert "WHICH cluster it was is revealed" in clean.text
    assert "(loss 0)" in clean.text
    noised = shared_target.cluster_statement(**facts, eta=2.0, diameter=1.5)
    assert (noised.guarantee, noised.position_epsilon) == ("pure", 3.0)
    assert "(loss 0)" in noised.text


def test_the_cost_of_fitted_tables_is_in_the_claim_and_in_the_figure() -> None:
    base = shared_target.randomised_statement(name="shared", injection="cut", epsilon=1.0, clusters=50, eta=None, dim=8)
    fitted = fitted_statement(base, 2.5)
    assert fitted.record_epsilon(8) == pytest.approx(2.5 + 8)
    assert fitted.numbers["fitted_epsilon"] == 2.5
    assert fitted.text.startswith(base.text)
    assert "2.5 nats, once for this data set" in fitted.text
    unsafe = fitted.marked_unsafe()
    assert unsafe.fitted_epsilon == 0
    assert unsafe.record_epsilon(1) is None
    assert unsafe.text.startswith("FIXED SEED, TESTS ONLY")
    assert "Nothing is claimed" in unsafe.text


def test_pooled_rows_count_every_token_in_them() -> None:
    one = shared_target.randomised_statement(
        name="pool", injection="cut", epsilon=0.5, clusters=9, summed=4, eta=None, dim=8
    )
    assert one.position_epsilon == 2.0
    assert one.record_epsilon(3) == 6.0
    pooled = added_noise.pooled_statement(name="pool", injection="cut", eta=2.0, dim=64, clip=1.5, size=4)
    assert pooled.position_epsilon == pytest.approx(2 * 2.0 * 2 * 1.5)
    assert pooled.numbers["one_vector_bound"] == pytest.approx(2.0 * 2 * 1.5 / 2)
    assert pooled.position_mu == pytest.approx(12 / 8)


def test_statements_are_plain_and_json() -> None:
    pairs = pair_report(np.array([1.0, 2.0]), 3.0, 64)
    made = [
        no_bound.none_statement(),
        added_noise.metric_statement(name="dchi", injection="embedding", eta=3, dim=64, diameter=4.0, pairs=pairs),
        added_noise.metric_statement(name="dchi", injection="embedding", eta=3, dim=64, diameter=None, pairs=pairs),
        added_noise.metric_statement(
            name="privtune", injection="embedding", eta=3, dim=64, diameter=4.0, pairs=pairs, shifted=True
        ),
        added_noise.clipped_statement(name="dchi", injection="cut", eta=3, dim=64, clip=2.0),
        no_bound.no_bound_statement(name="dchi", row="unclipped", injection="cut", numbers={}, why="not clipped."),
        added_noise.gaussian_statement(
            name="gaussian", injection="cut", epsilon=2, delta=1e-5, clip=1, sigma=3, dim=64
        ),
        shared_target.randomised_statement(name="shared", injection="cut", epsilon=1.0, clusters=50, eta=None, dim=8),
    ]
    for statement in made:
        again = json.loads(json.dumps(statement.to_dict(), allow_nan=False))
        assert again["row"] == statement.row
        assert statement.lines()[0] == statement.text
        assert statement.guarantee != "none" or "worst-case bound" in statement.text or "No noise" in statement.text
        unsafe = statement.marked_unsafe()
        assert unsafe.guarantee == "none"
        assert unsafe.record_epsilon(3) is None
    assert made[1].record_epsilon(10) == pytest.approx(10 * 12)
    assert made[2].record_epsilon(10) is None
    assert "no limit is stated" in made[2].text
    assert any("public tables" in caveat for caveat in made[3].caveats)
    assert made[4].record_epsilon(10) == pytest.approx(10 * 12)
    assert "2*eta*R = 12 nats" in made[4].text
    assert made[6].record_epsilon(4) == pytest.approx(p.gdp_epsilon(2 * made[6].position_mu, 1e-5))  # type: ignore[operator]
    assert made[7].record_epsilon(3) == pytest.approx(3.0)


def test_free_of_torch() -> None:
    code = (
        "import importlib, pkgutil, sys, privtune.device.privacy as room;"
        "names = [module.name for module in pkgutil.walk_packages(room.__path__, room.__name__ + '.')];"
        "assert room.__name__ + '.statements.added_noise' in names;"
        "[importlib.import_module(name) for name in names];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_surrogates_come_before_what_the_mechanism_claims_and_never_raise_it() -> None:
    claim = (
        "given types and the pattern of equal words, loss 0 between words of one type for what was replaced; words "
        "that were not replaced are in clear"
    )
    clear = surrogate_statement(no_bound.none_statement(), ("a", "b"), (0.125, 0.5))
    assert claim in clear.text
    assert "Replaced: 12.5% of words; in clear: 50.0% of content words." in clear.text
    assert (clear.row, clear.guarantee, clear.record_epsilon(9)) == ("surrogate", "none", None)
    assert clear.numbers == {"words_replaced": 0.125, "content_words_in_clear": 0.5}
    assert "Recognisers that ran: a, b." in clear.caveats[0]
    unknown = surrogate_statement(no_bound.none_statement(), ("a",), None)
    assert "Replaced" not in unknown.text
    noisy = added_noise.clipped_statement(name="dchi", injection="cut", eta=0.5, dim=8, clip=2.0)
    both = surrogate_statement(noisy, ("a",), (0.1, 0.2))
    assert both.text.startswith("Surrogates: ")
    assert noisy.text in both.text
    assert (both.row, both.record_epsilon(9)) == ("clipped", noisy.record_epsilon(9))
    assert set(noisy.caveats) < set(both.caveats)
    fixed = surrogate_statement(no_bound.none_statement().marked_unsafe(), ("a",), None)
    assert "FIXED SEED" in fixed.text
