"""The text that was sent is recognised among candidates wherever its releases are its own."""

import pytest

from privtune.device.audit.attacks.retrieval import retrieval
from tests.support.texts import token_rows


@pytest.fixture(scope="module")
def others():
    return token_rows(400, seed=2)


def recognised(lab, attacked, others):
    return retrieval(lab, lab.victim.observe(attacked), attacked, others).figure


@pytest.mark.parametrize(
    ("name", "params", "least"),
    [
        ("none", {}, 0.95),
        ("dchi", {"noise_ratio": 1.0}, 0.95),
        ("codes", {"codes": 8, "dims": 4, "task": "none"}, 0.95),
        ("custext", {"epsilon": 20.0}, 0.8),
        # Two clusters: some texts of one length have the same.
        ("shared", {"cluster_size": 8}, 0.5),
        ("shared", {"cluster_size": 8, "injection": "embedding"}, 0.8),
        ("pool", {"size": 2, "cluster_size": 8}, 0.4),
    ],
)
def test_it_is_recognised_where_words_are_hidden_but_not_the_sequence(make_lab, attacked, others, name, params, least):
    figure = recognised(make_lab(name, params), attacked, others)
    assert figure.floor == pytest.approx(1 / 460)
    assert figure.floor < figure.language_floor < 0.2
    assert figure.value >= least


@pytest.mark.parametrize(
    ("name", "params"),
    [("gaussian", {"epsilon": 0.1}), ("shared", {"cluster_size": 8, "epsilon_cluster": 0.01})],
)
def test_noise_that_hides_everything_leaves_the_length(make_lab, attacked, others, name, params):
    figure = recognised(make_lab(name, params), attacked, others)
    assert figure.low <= figure.language_floor + 0.05


def test_the_same_text_twice_is_one_candidate(make_lab, attacked, others):
    lab = make_lab("none")
    assert recognised(lab, [*attacked, *attacked], [*others, *attacked]).value >= 0.95
