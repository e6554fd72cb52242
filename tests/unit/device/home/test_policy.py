"""The device's policy: each rule refuses what it must, with the reason, and the defaults are the safe side."""

import pytest
from pydantic import ValidationError

from privtune.device.home.policy import Policy
from privtune.device.noise.params import DChiParams, GaussianParams
from privtune.device.noise.registry import REGISTRY, build, entry
from privtune.device.protections.protection import PROTECTIONS, protection
from privtune.shared.errors import InvalidInput, PolicyRefused
from tests.support.builders import least_spec


def job(**changes):
    """A job whose text is protected by noise alone."""
    least = {"model": "minilm", "mechanism": {"name": "dchi"}, "surrogates": {"replace": "nothing"}}
    return least_spec(**least | changes)


def policy(**changes):
    """A policy that allows two mechanisms beside the default protection."""
    return Policy.model_validate({"mechanisms": ["dchi", "gaussian"]} | changes)


def protected(name, task="classification", **changes):
    """A job with the settings of a protection, and changes to them."""
    return least_spec(**{"model": "minilm", "task": task} | protection(name).fields(task) | changes)


def codes(name="all", **params):
    """The mechanism of a protection with other parameters."""
    mechanism = protection(name).fields("classification")["mechanism"]
    return {"mechanism": {"name": "codes", "params": mechanism["params"] | params}}


def noise(name, **params):
    return {"mechanism": {"name": name, "params": params}}


EVERY = {"mechanisms": list(REGISTRY)}
DCHI, GAUSSIAN = DChiParams().noise_ratio, GaussianParams()


@pytest.mark.parametrize(
    ("rules", "asked", "reason"),
    [
        ({}, noise("none"), "this job has mechanism none, cut 1, tail 0 and replaces nothing"),
        ({}, {"labels": "shared", "num_labels": 2}, "labels 'shared' is not allowed"),
        ({}, {"train": {"epochs": 51}}, "asks for 51 epochs; the device allows 50"),
        ({}, noise("dchi", noise_ratio=DCHI * 0.9), rf"noise_ratio .* is below the {DCHI:g} that the device requires"),
        ({}, noise("dchi", eta=1e9), "does not allow dchi with eta set"),
        ({}, noise("gaussian", epsilon=GAUSSIAN.epsilon * 2), r"epsilon .* is above the .* that the device allows"),
        ({}, noise("gaussian", delta=GAUSSIAN.delta * 10), r"delta .* is above the .* that the device allows"),
        (
            {"mechanisms": ["dchi"]},
            noise("gaussian"),
            "names and stronger or the mechanisms dchi; this job has mechanism gaussian",
        ),
        ({"models": ["minilm*"]}, {"model": "smollm2"}, "does not allow the model smollm2"),
        ({"models": []}, {}, "does not allow the model minilm"),
        ({"max_epochs": 2}, {}, "asks for 3 epochs; the device allows 2"),
        ({"max_label_epsilon": 2}, {}, "requires randomised labels: label_epsilon of at most 2"),
        ({}, {"task": "causal-lm"}, "keeps a language model's gradients here"),
        ({"gradients": "none"}, {"label_epsilon": 1.0}, "lets no gradient leave: the job needs a tail"),
        ({}, {"zeroth_order": {"epsilon": 9.0}}, "zeroth_order.epsilon 9 is above the 8 that the device allows"),
        ({"max_label_epsilon": 2}, {"zeroth_order": {"epsilon": 4.0}}, "epsilon 4 is above the 2 that"),
        ({}, {"zeroth_order": {"epsilon": 1.0, "delta": 0.9}}, "zeroth_order.delta 0.9 is above the 1e-05 that"),
        ({"max_label_epsilon": 2}, {"label_epsilon": 2.5}, "label_epsilon 2.5 is above the 2 that the device allows"),
        ({"max_label_epsilon": 2, "gradients": "any"}, {"task": "causal-lm"}, "a language model's labels are its text"),
        (
            {"max_label_epsilon": 2, "allow_shared_labels": True},
            {"labels": "shared", "num_labels": 2},
            "requires randomised labels",
        ),
        ({"bounds": {"dchi": {"noise_ratio": {"min": 90}}}}, noise("dchi", noise_ratio=89), "below the 90"),
        ({"bounds": {"dchi": {"noise_ratio": {"max": 2}}}}, noise("dchi", noise_ratio=2.5), "above the 2 "),
        ({"bounds": {"dchi": {"noise_ratio": {"min": 6}}}}, noise("dchi", eta=1e9), "dchi with eta set"),
        ({"bounds": {"dchi": {"noise_ratio": {"max": 9}}}}, noise("dchi", noise_ratio=1e-6), f"below the {DCHI:g}"),
        ({"bounds": {}}, noise("dchi", eta=1.0), "dchi with eta set"),
        ({"bounds": {"gaussian": {"epsilon": {"max": 99}}}}, noise("gaussian", delta=0.5), "delta 0.5 is above"),
        (EVERY, noise("privtune", noise_ratio=1e-6), f"below the {DCHI:g} that the device requires"),
        (EVERY, noise("privtune", importance="scale", least=1e-9), f"below the {DCHI:g} that the device requires"),
        (EVERY, noise("sap", kept_noise=0.01), "noise_ratio 0.06 is below the 1.8"),
        (EVERY, noise("sap", noise_ratio=12, contributing=1), "contributing 1 is above the 0.2"),
        (EVERY, noise("sap", noise_ratio=1.8, kept_noise=1), "kept_noise 1 is above the 0.3"),
        (EVERY, noise("shared", cluster_size=1), "cluster_size 1 is below the 96"),
        (EVERY, noise("pool", clusters=False), "pool with clusters set"),
        (EVERY, noise("codes", codes=4096), "codes 4096 is above the 64"),
        (EVERY, noise("snd", noise_ratio=0.1), "noise_ratio 0.1 is below the 6"),
        (EVERY, noise("textobfuscator", noise_ratio=0.1), "noise_ratio 0.1 is below the 3"),
        (EVERY, noise("custext", epsilon=1000), "epsilon 1000 is above the 3"),
        ({}, noise("dchi", clip=1e6), "dchi with clip set"),
        ({}, noise("dchi", clip_ratio=0), "clip_ratio inf is above the 1.25"),
        (
            EVERY | {"bounds": {"privtune": {"importance": {"allowed": False}}}},
            noise("privtune", noise_ratio=60, importance="gain"),
            "privtune with importance set",
        ),
    ],
)
def test_each_rule_refuses_with_its_reason(rules, asked, reason):
    with pytest.raises(PolicyRefused, match=reason):
        policy(**rules).check(job(**asked))


@pytest.mark.parametrize(
    ("rules", "asked"),
    [
        ({"gradients": "none"}, {"tail": 1}),
        ({"gradients": "none"}, {"zeroth_order": {"epsilon": 8.0}}),
        ({"max_label_epsilon": 2}, {"zeroth_order": {"epsilon": 2.0}}),
        ({"gradients": "any"}, {"task": "causal-lm"}),
        ({}, {"task": "causal-lm", "tail": 4}),
        ({"max_label_epsilon": 2}, {"tail": 1}),
        ({"max_label_epsilon": 2, "gradients": "none"}, {"tail": 1, "task": "causal-lm"}),
        ({}, {}),
        ({}, noise("gaussian")),
        ({}, noise("dchi", noise_ratio=DCHI * 2)),
        ({}, {"train": {"epochs": 50}}),
        ({"protections": ["none"]}, noise("none")),
        ({"protections": ["none"], "mechanisms": []}, noise("dchi", noise_ratio=1e-6)),
        (
            {"bounds": {"codes": {"epsilon_code": {"max": 2}}}, "mechanisms": ["codes"]},
            codes(epsilon_code=1.5, epsilon_task=4.0),
        ),
        ({"allow_shared_labels": True}, {"labels": "shared", "num_labels": 2}),
        ({"models": ["mini*", "x"]}, {}),
        ({}, {"label_epsilon": 16.0}),
        ({"max_label_epsilon": 2}, {"label_epsilon": 2.0}),
        ({"bounds": {"dchi": {"noise_ratio": {"min": 1}}}}, noise("dchi", noise_ratio=1)),
        ({"bounds": {"dchi": {"eta": {"max": 1}}}}, noise("dchi", eta=1.0)),
        ({"bounds": {}}, noise("dchi")),
        (EVERY, noise("privtune", noise_ratio=2 * DCHI, importance="scale", least=0.5)),
        (EVERY | {"bounds": {"privtune": {"importance": {"allowed": False}}}}, noise("privtune")),
        (EVERY | {"bounds": {"privtune": {"importance": {"allowed": False}}}}, noise("privtune", importance="off")),
        *((EVERY, noise(name)) for name in REGISTRY if name != "none"),
    ],
)
def test_what_a_rule_allows_passes(rules, asked):
    policy(**rules).check(job(**asked))


def test_no_noise_is_not_opened_by_naming_it_as_a_mechanism():
    with pytest.raises(PolicyRefused, match="this job has mechanism none"):
        policy(mechanisms=["none", "dchi"]).check(job(**noise("none")))


def test_randomised_response_that_is_off_is_over_every_bound():
    for mechanism, parameter in (("codes", "epsilon_code"), ("shared", "epsilon_cluster"), ("pool", "epsilon_cluster")):
        rules = policy(**EVERY, bounds={mechanism: {parameter: {"max": 1}}})
        rules.check(job(**noise(mechanism, **{parameter: 1.0})))
        with pytest.raises(PolicyRefused, match=f"{parameter} inf is above the 1"):
            rules.check(job(**noise(mechanism)))


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_a_protection_admits_itself_and_the_stronger_ones(task):
    names = list(PROTECTIONS)
    for place, allowed in enumerate(names):
        rules = policy(protections=[allowed], mechanisms=[], gradients="any")
        for stronger in names[place:]:
            rules.check(protected(stronger, task))
        for weaker in names[:place]:
            with pytest.raises(PolicyRefused, match=f"allows the protections {allowed} and stronger"):
                rules.check(protected(weaker, task))


def test_the_default_policy_is_that_of_names():
    assert Policy.model_validate({}).protections == ("names",)
    Policy.model_validate({}).check(least_spec())
    Policy.model_validate({}).check(least_spec(task="causal-lm"))


@pytest.mark.parametrize(
    ("allowed", "asked", "reason"),
    [
        ("names", protected("names", surrogates={"rank": 200_001}), "replaces identifying, those from rank 200,001"),
        ("names", protected("names", surrogates={"language": "zh"}), "does not allow texts in 'zh'; languages: en"),
        ("names", protected("names", labels="shared", num_labels=2), "labels 'shared' is not allowed"),
        ("names", protected("words", tail=0), "tail 0 and replaces nothing"),
        ("words", protected("words", tail=0, surrogates={}), "tail 0 and replaces identifying"),
        ("words", protected("words", cut=1), "cut 1"),
        ("words", protected("words", **codes("words", codes=33)), "mechanism codes"),
        ("words", protected("words", **codes("words", epsilon_task=8.5)), "mechanism codes"),
        ("words", protected("words", mechanism={"name": "dchi", "params": {"noise_ratio": 9000}}), "mechanism dchi"),
        ("words", protected("names", task="causal-lm"), "keeps a language model's gradients here"),
        ("all", protected("all", **codes(epsilon_code=1.5)), "mechanism codes"),
        ("all", protected("all", **codes(epsilon_code=0.0)), "mechanism codes"),
        ("all", protected("all", **codes(codes=9)), "mechanism codes"),
    ],
)
def test_a_protections_floor_can_not_be_walked_round(allowed, asked, reason):
    with pytest.raises(PolicyRefused, match=reason):
        Policy.model_validate({"protections": [allowed]}).check(asked)


@pytest.mark.parametrize(
    ("allowed", "asked"),
    [
        ("names", protected("names", surrogates={"rank": 5_000})),
        ("names", protected("names", mechanism={"name": "dchi", "params": {"noise_ratio": 0.1}})),
        ("names", protected("names", task="causal-lm", tail=4)),
        ("names", protected("names", label_epsilon=2.0)),
        ("words", protected("words", cut=3, tail=2, skip="none", **codes("words", codes=8, dims=64))),
        ("words", protected("words", surrogates={})),
        ("all", protected("all", **codes(codes=4, epsilon_code=0.5))),
    ],
)
def test_what_protects_more_passes(allowed, asked):
    Policy.model_validate({"protections": [allowed]}).check(asked)


def test_the_owners_bounds_hold_for_protections_too():
    rules = policy(protections=["words"], bounds={"codes": {"codes": {"max": 16}}})
    with pytest.raises(PolicyRefused, match="codes 32 is above the 16"):
        rules.check(protected("words"))
    rules.check(protected("all"))


def test_gradients_of_a_language_model_may_name_surrogates_only_where_names_is_allowed():
    asked = protected("names", task="causal-lm", mechanism={"name": "dchi"})
    policy().check(asked)
    for rules in (policy(protections=["words"]), policy(gradients="none")):
        with pytest.raises(PolicyRefused, match="gradient"):
            rules.check(asked)


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
        ({"protections": ["everything"]}, "no protection 'everything'; there are: none, names, words, all"),
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


@pytest.mark.parametrize("name", REGISTRY)
def test_every_number_that_weakens_has_a_floor(name):
    """Of a bounded mechanism, no parameter that its statement or `weaker` calls strength is left out."""
    row = entry(name)
    assert set(row.params.weaker) <= set(row.params.model_fields)
    assert row.strength is None or row.strength.param in row.params.weaker


@pytest.mark.parametrize(
    ("mechanism", "params", "reason"),
    [
        ("dchi", {"eta": 1e9}, "noise_ratio .* is below the 6"),
        ("privtune", {"eta": 1e9, "importance": "gain"}, "noise_ratio .* is below the 6"),
        ("dchi", {"clip": 1e6}, "clip_ratio .* is above the 1.25"),
        ("pool", {"clip": 1e6}, "clip_ratio .* is above the 1.25"),
        ("textobfuscator", {"clip": 1e6}, "clip_ratio .* is above the 1.25"),
    ],
)
def test_what_only_the_model_decides_is_compared_once_it_is_there(context, mechanism, params, reason):
    rules = policy(**EVERY, bounds={mechanism: {key: {} for key in ("eta", "clip") if key in params}})
    asked = job(**noise(mechanism, **params))
    rules.check(asked)
    with pytest.raises(PolicyRefused, match=reason):
        rules.check_resolved(asked, build(asked.mechanism, context).resolved())


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "none"])
def test_defaults_stay_allowed_once_the_model_is_there(context, name):
    asked = job(**noise(name))
    policy(**EVERY).check_resolved(asked, build(asked.mechanism, context).resolved())


def test_a_budget_allows_one_noise_unless_it_says_otherwise():
    assert policy().budget.noises == policy(budget={"jobs": 5}).budget.noises == 1
    assert policy(budget={"noises": 3}).budget.noises == 3
