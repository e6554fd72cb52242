"""What a job's settings let the cloud see, in words; every state has a headline."""

from typing import get_args

import pytest

from privtune.cloud.dashboard.words import HEADLINES, TONES, what_leaves
from privtune.cloud.jobs.states import STATUSES, Phase
from tests.support.builders import least_spec


def test_every_phase_and_status_is_known():
    assert {phase for _, phase in HEADLINES} == set(get_args(Phase))
    assert {status for status, _ in HEADLINES} == set(TONES) == set(STATUSES)


@pytest.mark.parametrize(
    ("changes", "words", "labels"),
    [
        ({}, "All other words can be read", "reveal labels"),
        ({"surrogates": {"replace": "nothing"}}, "every word can be read", "reveal labels"),
        ({"mechanism": {"name": "dchi", "params": {"eta": 3.0}}}, "noise (dchi: eta 3.0)", "reveal labels"),
        ({"tail": 1}, "All other words", "no gradient leaves"),
        ({"task": "causal-lm"}, "All other words", "labels are the words"),
        ({"labels": "shared", "num_labels": 2}, "All other words", "as they are"),
        ({"label_epsilon": 1.5}, "All other words", "at most 1.5 nats"),
        ({"zeroth_order": {"epsilon": 8.0}}, "All other words", "epsilon 8"),
    ],
)
def test_what_leaves(changes, words, labels):
    facts = {fact.about: fact.text for fact in what_leaves(least_spec(**changes).model_dump(mode="json"))}
    assert words in facts["Words"]
    assert labels in facts["Labels"]
