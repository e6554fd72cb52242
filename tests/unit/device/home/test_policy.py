"""The device's policy: each rule refuses what it must, with the reason, and the defaults are the safe side."""

import pytest
from pydantic import ValidationError

from privtune.device.home.policy import Policy
from privtune.device.noise.params import DChiParams, GaussianParams
from privtune.shared.errors import InvalidInput, PolicyRefused
from tests.support.builders import least_spec


def job(**changes):
    return least_spec(**{"model": "minilm"} | changes)


def policy(**changes):
    return Policy.model_validate(changes)


def noise(name, **params):
    return {"mechanism": {"name": name, "params": params}}


DCHI, GAUSSIAN = DChiParams().noise_ratio, GaussianParams()


@pytest.mark.parametrize(
    ("rules", "asked", "reason"),
    [
        ({}, noise("none"), "does not let clean vectors leave"),
        ({}, {"labels": "shared", "num_labels": 2}, "labels 'shared' is not allowed"),
        ({}, {"train": {"epochs": 51}}, "asks for 51 epochs; the device allows 50"),
        ({}, noise("dchi", noise_ratio=DCHI * 0.9), rf"noise_ratio .* is below the {DCHI:g} that the device requires"),
        ({}, noise("dchi", eta=1e9), "does not allow dchi with eta set"),
        ({}, noise("gaussian", epsilon=GAUSSIAN.epsilon * 2), r"epsilon .* is above the .* that the device allows"),
        ({}, noise("gaussian", delta=GAUSSIAN.delta * 10), r"delta .* is above the .* that the device allows"),
        ({"mechanisms": ["dchi"]}, noise("gaussian"), "does not allow the mechanism gaussian; allowed: dchi"),
        ({"models": ["minilm*"]}, {"model": "smollm2"}, "does not allow the model smollm2"),
        ({"models": []}, {}, "does not allow the model minilm"),
        ({"max_epochs": 2}, {}, "asks for 3 epochs; the device allows 2"),
        ({"max_label_epsilon": 2}, {}, "requires randomised labels: label_epsilon of at most 2"),
        ({}, {"task": "causal-lm"}, "keeps a language model's gradients here"),
        ({"gradients": "none"}, {"label_epsilon": 1.0}, "lets no gradient leave: the job needs a tail"),
        ({"max_label_epsilon": 2}, {"label_epsilon": 2.5}, "label_epsilon 2.5 is above the 2 that the device allows"),
        ({"max_label_epsilon": 2, "gradients": "any"}, {"task": "causal-lm"}, "a language model's labels are its text"),
        (
            {"max_label_epsilon": 2, "allow_shared_labels": True},
            {"labels": "shared", "num_labels": 2},
            "requires randomised labels",
        ),
        ({"bounds": {"dchi": {"noise_ratio": {"min": 90}}}}, noise("dchi", noise_ratio=89), "below the 90"),
        ({"bounds": {"dchi": {"noise_ratio": {"max": 2}}}}, noise("dchi", noise_ratio=2.5), "above the 2 "),
    ],
)
def test_each_rule_refuses_with_its_reason(rules, asked, reason):
    with pytest.raises(PolicyRefused, match=reason):
        policy(**rules).check(job(**asked))


@pytest.mark.parametrize(
    ("rules", "asked"),
    [
        ({"gradients": "none"}, {"tail": 1}),
        ({"gradients": "any"}, {"task": "causal-lm"}),
        ({}, {"task": "causal-lm", "tail": 4}),
        ({"max_label_epsilon": 2}, {"tail": 1}),
        ({"max_label_epsilon": 2, "gradients": "none"}, {"tail": 1, "task": "causal-lm"}),
        ({}, {}),
        ({}, noise("gaussian")),
        ({}, noise("dchi", noise_ratio=DCHI * 2)),
        ({}, {"train": {"epochs": 50}}),
        ({"allow_no_noise": True}, noise("none")),
        ({"allow_shared_labels": True}, {"labels": "shared", "num_labels": 2}),
        ({"models": ["mini*", "x"]}, {}),
        ({}, {"label_epsilon": 16.0}),
        ({"max_label_epsilon": 2}, {"label_epsilon": 2.0}),
        ({"bounds": {"dchi": {"noise_ratio": {"min": 1}}}}, noise("dchi", noise_ratio=1)),
        ({"bounds": {}}, noise("dchi", eta=1.0)),
    ],
)
def test_what_a_rule_allows_passes(rules, asked):
    policy(**rules).check(job(**asked))


def test_no_noise_is_not_opened_by_naming_it_as_a_mechanism():
    with pytest.raises(PolicyRefused, match="clean vectors"):
        policy(mechanisms=["none", "dchi"]).check(job(**noise("none")))


def test_models_are_matched_by_case():
    with pytest.raises(PolicyRefused):
        policy(models=["minilm"]).check(job(model="MINILM"))


def test_wrong_settings_are_invalid_input():
    with pytest.raises(InvalidInput, match="eta"):
        policy().check(job(**noise("dchi", eta=-1.0)))
    with pytest.raises(InvalidInput, match="quantum"):
        policy().check(job(**noise("quantum")))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"mechanisms": ["quantum"]}, "quantum"),
        ({"bounds": {"dchi": {"epsilon": {"min": 1}}}}, "dchi has no parameter 'epsilon'"),
        ({"bounds": {"quantum": {}}}, "quantum"),
        ({"bounds": {"dchi": {"noise_ratio": {"min": 9, "max": 3}}}}, "min 9 is above max 3"),
        ({"audit": {"max_top1": 1.5}}, "less than or equal to 1"),
        ({"audit": {"size": "tiny"}}, "'quick' or 'full'"),
        ({"max_epochs": 0}, "greater than or equal to 1"),
        ({"max_label_epsilon": 0}, "greater than 0"),
        ({"allow_everything": True}, "allow_everything"),
    ],
)
def test_a_policy_that_could_never_hold_is_refused(rules, words):
    with pytest.raises(ValidationError, match=words):
        policy(**rules)
