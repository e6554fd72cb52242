"""From the options of `privtune finetune` to a JobSpec; a mistake is named by its option."""

import inspect

import pytest

from privtune.device.cli.commands.finetune import finetune
from privtune.device.cli.job_options import JOB_OPTIONS, JobOptions, build_spec
from privtune.device.cli.mechanism_options import mechanism_of
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import JobSpec

NOISE = {"name": "dchi", "params": {}}


def build(name=None, num_labels=None, **options):
    given = JobOptions(**{"model": "m"} | options).given
    return build_spec(given, NOISE, name=name, num_labels=num_labels)


def test_left_out_options_take_the_jobs_defaults():
    spec = build(cut=None, lora_targets=[])
    defaults = JobSpec(model="m", training_file=spec.training_file, mechanism=spec.mechanism)
    assert spec == defaults


def test_every_option_of_the_table_is_one_of_the_command_and_lands_in_the_job():
    assert set(JOB_OPTIONS) <= set(inspect.signature(finetune).parameters)
    values = {
        "cut": 2, "labels": "shared", "suffix": "mine", "codec": "fp32", "tuning": "full",
        "lora_rank": 3, "lora_alpha": 5.0, "lora_dropout": 0.5, "lora_targets": ("query",), "learning_rate": 0.1,
        "head_learning_rate": 0.2, "weight_decay": 0.3, "schedule": "cosine", "warmup_ratio": 0.4, "max_grad_norm": 2.0,
        "epochs": 7, "max_steps": 8, "batch_size": 9, "accumulation": 4, "max_length": 64, "seed": 11,
        "precision": "bf16", "in_flight": 5, "checkpoint_every": 13, "task": "classification", "model": "m",
        "gradient_checkpointing": True, "surrogates": "identifying", "surrogate_rank": 5000, "surrogate_language": "de",
    }  # fmt: skip
    # Shared labels can't be randomised ones, nor go with a tail, and the mechanism has options of its own besides.
    assert set(values) | {"label_epsilon", "tail", "skip", "mechanism"} == set(JOB_OPTIONS)
    assert (build(tail=2).tail, build(tail=2, skip="tuned").skip) == (2, "tuned")
    assert build(label_epsilon=2.0).label_epsilon == 2.0
    spec = build(**values, num_labels=3)
    assert spec.num_labels == 3
    facts = spec.model_dump()
    for option, value in values.items():
        place = facts
        for part in JOB_OPTIONS[option].path:
            place = place[part]
        assert place == value, option


def test_the_handle_reveals_nothing_unless_named():
    assert build().training_file != build().training_file
    spec = build_spec({"model": "m"}, NOISE, name="reviews", validated=True)
    assert (spec.training_file, spec.validation_file) == ("device://reviews", "device://reviews-validation")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"skip": "none"}, "give --tail as well"),
        ({"surrogate_rank": 5000}, "need --surrogates identifying"),
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


def test_mechanisms_and_their_parameters():
    assert mechanism_of(None, (), no_noise=False) == {"params": {}}
    assert mechanism_of("none", (), no_noise=True) == mechanism_of(None, (), no_noise=True) == {"name": "none"}
    asked = mechanism_of("dchi", ("noise_ratio= 8", "a=0.5", "b=True", "c=x"), no_noise=False)
    assert asked == {"name": "dchi", "params": {"noise_ratio": 8, "a": 0.5, "b": True, "c": "x"}}


@pytest.mark.parametrize(
    ("name", "params", "no_noise", "words"),
    [
        ("none", (), False, "Say --no-noise"),
        ("dchi", (), True, "contradict each other"),
        (None, ("eta=1",), True, "takes no --param"),
        ("dchi", ("eta",), False, "NAME=VALUE is expected"),
        ("dchi", ("=1",), False, "NAME=VALUE is expected"),
        ("dchi", ("eta=",), False, "NAME=VALUE is expected"),
    ],
)
def test_contradictions_of_noise_are_refused(name, params, no_noise, words):
    with pytest.raises(InvalidInput, match=words):
        mechanism_of(name, params, no_noise=no_noise)
