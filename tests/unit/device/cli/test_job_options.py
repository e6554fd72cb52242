"""From the options of `privtune finetune` to a JobSpec; a mistake is named by its option."""

import inspect

import pytest

from privtune.device.cli.commands.finetune import finetune
from privtune.device.cli.job_flags import JobOptions
from privtune.device.cli.mechanism_options import params_of
from privtune.device.client.job_options import JOB_OPTIONS, build_spec
from privtune.device.protections.protection import PROTECTIONS
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import JobSpec


def build(name=None, num_labels=None, protect="names", params=None, validated=False, **options):
    given = JobOptions(**{"model": "m"} | options).given
    return build_spec(given, params or {}, protect=protect, name=name, validated=validated, num_labels=num_labels)


def test_left_out_options_take_the_jobs_defaults():
    spec = build(cut=None, lora_targets=[])
    assert spec == JobSpec(model="m", training_file=spec.training_file)


def test_every_option_of_the_table_is_one_of_the_command_and_lands_in_the_job():
    assert set(JOB_OPTIONS) <= set(inspect.signature(finetune).parameters)
    values = {
        "cut": 2, "labels": "shared", "suffix": "mine", "codec": "fp32", "tuning": "full",
        "lora_rank": 3, "lora_alpha": 5.0, "lora_dropout": 0.5, "lora_targets": ("query",), "learning_rate": 0.1,
        "head_learning_rate": 0.2, "weight_decay": 0.3, "schedule": "cosine", "warmup_ratio": 0.4, "max_grad_norm": 2.0,
        "epochs": 7, "max_steps": 8, "batch_size": 9, "accumulation": 4, "max_length": 64, "seed": 11,
        "precision": "bf16", "in_flight": 5, "checkpoint_every": 13, "task": "classification", "model": "m",
        "gradient_checkpointing": True, "mechanism": "dchi", "surrogates": "identifying", "surrogate_rank": 5000,
        "surrogate_language": "de", "zeroth_order_delta": 1e-6, "zeroth_order_clip": 3.0, "zeroth_order_scale": 0.1,
        "zeroth_order_support": "rectified", "zeroth_order_support_ratio": 2.0,
        "pad_to": (32, 64), "evaluate_every": 3, "early_stopping": 2, "best_by": "accuracy",
    }  # fmt: skip
    # Shared labels can't be randomised ones, nor go with a tail or with slopes.
    assert set(values) | {"label_epsilon", "tail", "skip", "states", "taught", "zeroth_order_epsilon"} == set(
        JOB_OPTIONS
    )
    assert build(zeroth_order_epsilon=2.0).zeroth_order.epsilon == 2.0
    assert (build(tail=2).tail, build(tail=2, skip="tuned").skip) == (2, "tuned")
    assert (build(tail=2, states="int8").output_codec, build(tail=2).output_codec) == ("int8", "bf16")
    assert build(label_epsilon=2.0).label_epsilon == 2.0
    spec = build(**values, num_labels=3, validated=True)
    assert spec.num_labels == 3
    facts = spec.model_dump()
    for option, value in values.items():
        place = facts
        for part in JOB_OPTIONS[option].path:
            place = place[part]
        assert place == value, option


def test_the_handle_reveals_nothing_unless_named():
    assert build().training_file != build().training_file
    spec = build_spec({"model": "m"}, {}, name="reviews", validated=True)
    assert (spec.training_file, spec.validation_file) == ("device://reviews", "device://reviews-validation")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"skip": "none"}, "give --tail as well"),
        ({"states": "int8"}, "--states needs a tail"),
        ({"protect": "none", "surrogate_rank": 5000}, "need --surrogates identifying"),
        ({"skip": "tuned", "tail": 1, "cut": 0}, "at cut 0 there are none"),
        ({"tail": -1}, r"--tail -1: should be greater than or equal to 0\."),
        ({"tail": 1, "labels": "shared"}, "labels: shared and a tail contradict each other"),
        ({"tail": 1, "label_epsilon": 2.0}, "with a tail none leaves: drop it"),
        ({"tail": 1, "gradient_checkpointing": True}, "with a tail it trains nothing"),
        ({"cut": -1}, r"--cut -1: should be greater than or equal to 0\."),
        ({"learning_rate": 2.0}, r"--learning-rate 2\.0: should be less than or equal to 1\."),
        ({"lora_dropout": 1.0}, "--lora-dropout"),
        ({"max_length": 1}, "--max-length 1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"seed": 2**31}, "--seed"),
        ({"name": "a b"}, "--name: letters, digits"),
        ({"name": "../x"}, "--name: letters, digits"),
        ({"labels": "shared", "num_labels": 2, "task": "causal-lm"}, "the labels are the text itself"),
        ({"label_epsilon": 0.0}, r"--label-epsilon 0\.0: should be greater than 0"),
        ({"label_epsilon": 17.0}, r"--label-epsilon 17\.0: should be less than or equal to 16"),
        ({"label_epsilon": 2.0, "task": "causal-lm"}, "its labels are the text"),
        ({"label_epsilon": 2.0, "labels": "shared", "num_labels": 2}, "the cloud gets them as they are"),
    ],
)
def test_a_mistake_names_its_option(given, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        build(**given)
    assert "\n" not in caught.value.message


def test_parameters_of_a_mechanism():
    asked = params_of(("noise_ratio= 8", "a=0.5", "b=True", "c=x"))
    assert asked == {"noise_ratio": 8, "a": 0.5, "b": True, "c": "x"}


@pytest.mark.parametrize("param", ["eta", "=1", "eta="])
def test_a_parameter_is_a_pair(param):
    with pytest.raises(InvalidInput, match="NAME=VALUE is expected"):
        params_of((param,))


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
@pytest.mark.parametrize("name", PROTECTIONS)
def test_a_protection_is_its_settings(name, task):
    spec = build(protect=name, task=task)
    wanted = PROTECTIONS[name].fields(task)
    assert {field: value for field, value in spec.model_dump().items() if field in wanted} == wanted | {
        "surrogates": spec.surrogates.model_dump() | wanted["surrogates"]
    }


def test_an_option_overrides_one_setting_of_the_protection():
    mine, words = build(protect="words", cut=3, params={"codes": 16}), build(protect="words")
    assert mine.mechanism.params == words.mechanism.params | {"codes": 16}
    assert (mine.cut, mine.tail, mine.skip) == (3, words.tail, words.skip)
    assert build(protect="words", skip="none").skip == "none"
    other = build(protect="words", mechanism="dchi", params={"noise_ratio": 3})
    assert (other.mechanism.name, other.mechanism.params, other.tail) == ("dchi", {"noise_ratio": 3}, 1)


def test_an_unknown_protection_or_parameter_is_named():
    with pytest.raises(InvalidInput, match="no protection 'everything'; there are: none, names, words, all"):
        build(protect="everything")
    with pytest.raises(InvalidInput, match="mechanism none has no parameter 'noise_ratio'"):
        build(params={"noise_ratio": 6})
