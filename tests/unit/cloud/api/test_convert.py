import pytest
from pydantic import ValidationError

from privtune.cloud.api.convert import job_object, number_of, to_spec
from privtune.cloud.api.error_responses import explain
from privtune.cloud.api.requests import CreateJobRequest
from privtune.cloud.api.responses import JobObject
from privtune.cloud.jobs.states import JobProgress
from privtune.shared.errors import InvalidInput, JobNotFound
from privtune.shared.job_spec import JobSpec, OptimSpec, TrainSpec
from tests.support.leases import begin

LEAST = {"model": "m", "training_file": "device://reviews"}


def spec(**fields):
    return to_spec(CreateJobRequest.model_validate(LEAST | fields))


def refusal(**fields):
    """The sentence and the field that a bad request is answered with, wherever it is caught."""
    try:
        spec(**fields)
    except InvalidInput as error:
        return error.message, error.param
    except ValidationError as error:
        return explain(error.errors())
    raise AssertionError("accepted")


def refused_by_schema(fields):
    """Whether the API's document says that a request with these fields is none."""
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    checker = jsonschema_rs.validator_for(CreateJobRequest.model_json_schema())
    assert checker.is_valid(LEAST)
    return not checker.is_valid(LEAST | fields)


def test_the_least_request_takes_every_default():
    assert spec() == JobSpec(**LEAST)


@pytest.mark.parametrize("place", ["hyperparameters", "method"])
def test_openais_hyperparameters_land_in_the_spec(place):
    hyper = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 0.5}
    fields = {"hyperparameters": hyper}
    if place == "method":
        fields = {"method": {"type": "supervised", "supervised": {"hyperparameters": hyper}}}
    made = spec(seed=3, suffix="x", validation_file="device://held-out", **fields)
    assert (made.train.epochs, made.train.batch_size, made.train.seed) == (2, 8, 3)
    assert made.optim.learning_rate == 0.5 * OptimSpec().learning_rate
    assert (made.suffix, made.validation_file) == ("x", "device://held-out")


def test_auto_and_null_are_defaults():
    hyper = {"n_epochs": "auto", "batch_size": None, "learning_rate_multiplier": "auto"}
    assert spec(hyperparameters=hyper, seed=None, privtune={"train": None, "cut": None}) == JobSpec(**LEAST)


def test_privtunes_own_fields():
    options = {
        "task": "classification",
        "cut": 2,
        "labels": "shared",
        "num_labels": 3,
        "codec": "fp32",
        "mechanism": {"name": "gaussian", "params": {"sigma": 0.5, "exact": True}},
        "tuning": {"rank": 4, "targets": ["query"]},
        "optim": {"learning_rate": 0.01},
        "train": {"max_steps": 7},
    }
    made = spec(privtune=options)
    assert made == JobSpec(**LEAST, **options)
    assert made.train == TrainSpec(max_steps=7)


def test_one_setting_has_one_spelling_in_a_request():
    cases = [
        ({"hyperparameters": {"n_epochs": 2}, "privtune": {"train": {"epochs": 2}}}, "n_epochs"),
        ({"hyperparameters": {"n_epochs": 2}, "privtune": {"train": {"epochs": 3}}}, "n_epochs"),
        ({"hyperparameters": {"batch_size": 2}, "privtune": {"train": {"batch_size": 16}}}, "batch_size"),
        ({"seed": 1, "privtune": {"train": {"seed": 0}}}, "seed"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 2}, "privtune": {"optim": {"learning_rate": 0.5}}},
            "learning_rate_multiplier",
        ),
        (
            {"hyperparameters": {"n_epochs": 2}, "method": {"supervised": {"hyperparameters": {"n_epochs": 3}}}},
            "method.supervised.hyperparameters.n_epochs",
        ),
    ]
    for fields, param in cases:
        message, named = refusal(**fields)
        assert "give only one" in message
        assert refused_by_schema(fields)
        assert named == param


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"modell": "x"}, "modell", "Unknown field"),
        ({"privtune": {"cutt": 1}}, "privtune.cutt", "Unknown field"),
        ({"privtune": {"train": {"epoch": 1}}}, "privtune.train.epoch", "Unknown field"),
        ({"model": None}, "model", "string"),
        ({"training_file": "file-abc"}, "training_file", "device://NAME"),
        ({"training_file": "device://../../etc"}, "training_file", "device://NAME"),
        ({"validation_file": "/home/me/x.csv"}, "validation_file", "device://NAME"),
        ({"privtune": {"cut": -1}}, "privtune.cut", "greater than or equal to 0"),
        ({"privtune": {"task": "rhyme"}}, "privtune.task", "classification"),
        ({"privtune": {"train": {"epochs": 0}}}, "privtune.train.epochs", "greater"),
        ({"privtune": []}, "privtune", "object"),
        ({"hyperparameters": {"n_epochs": 0}}, "privtune.train.epochs", "greater"),
        ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs", "integer"),
        ({"method": {"type": "dpo"}}, "method.type", "supervised"),
        ({"suffix": "a/b"}, "suffix", "pattern"),
        ({"seed": -1}, "privtune.train.seed", "greater"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "at most 0"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "16"),
        ({"metadata": {"a": "\x00"}}, "metadata.a", "pattern"),
        ({"privtune": {"labels": "shared"}}, "privtune", "num_labels"),
        ({"privtune": {"label_epsilon": 99}}, "privtune.label_epsilon", "less than or equal to 16"),
        ({"privtune": {"label_epsilon": 2, "labels": "shared", "num_labels": 2}}, "privtune", "private labels"),
        ({"privtune": {"tail": 1, "labels": "shared", "num_labels": 2}}, "privtune", "contradict"),
        ({"privtune": {"tail": 1, "label_epsilon": 2}}, "privtune", "drop it"),
        ({"privtune": {"tail": 1, "tuning": {"gradient_checkpointing": True}}}, "privtune", "trains nothing"),
        ({"privtune": {"tail": 1, "cut": 0, "skip": "tuned"}}, "privtune", "there are none"),
        ({"hyperparameters": {"learning_rate_multiplier": 2001}}, "hyperparameters.learning_rate_multiplier", "less"),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", "integer"),
        ({"privtune": {"tail": False}}, "privtune.tail", "integer"),
        ({"privtune": {"tail": "1"}}, "privtune.tail", "integer"),
        ({"privtune": {"optim": {"max_grad_norm": False}}}, "privtune.optim.max_grad_norm", "number"),
        ({"privtune": {"train": {"max_steps": "7"}}}, "privtune.train.max_steps", "integer"),
        ({"seed": True}, "seed", "integer"),
        ({"privtune": {"label_epsilon": 2, "task": "causal-lm"}}, "privtune", "its labels are the text"),
        ({"privtune": {"labels": "shared", "task": "causal-lm", "num_labels": 2}}, "privtune", "text itself"),
        ({"privtune": {"mechanism": {"name": "../x"}}}, "privtune.mechanism.name", "pattern"),
    ],
)
def test_bad_requests_get_one_sentence_that_names_the_field(fields, param, words):
    message, named = refusal(**fields)
    assert named == param
    assert words in message
    assert "\n" not in message
    assert message.endswith(".")
    assert refused_by_schema(fields)


def test_a_number_that_is_none_is_refused():
    message, named = refusal(hyperparameters={"learning_rate_multiplier": float("nan")})
    assert named == "hyperparameters.learning_rate_multiplier"
    assert "must be" in message or "should be" in message


def test_the_answer_fits_its_documented_shape_and_gives_the_spec_back(jobs):
    made = spec(privtune={"cut": 0}, suffix="mine")
    job = jobs.create("alice", made, metadata={"a": "b"})
    answer = JobObject.model_validate(job_object(job))
    assert JobSpec.model_validate(job_object(job)["privtune"]["spec"]) == made
    assert answer.fine_tuned_model is None
    token = begin(jobs, job.id)
    jobs.progress(job.id, JobProgress(step=5, total_steps=10))
    assert job_object(jobs.get(job.id))["estimated_finish"] is not None
    jobs.succeed(job.id, token, adapter_sha256="a" * 64, tokens=99, steps=10)
    done = job_object(jobs.get(job.id))
    assert done["fine_tuned_model"] == f"ft:m:alice:mine:{job.id.removeprefix('ftjob-')}"
    assert (done["trained_tokens"], done["estimated_finish"]) == (99, None)


@pytest.mark.parametrize(
    ("cursor", "refusal"),
    [
        ("ftevent-other-3", JobNotFound),
        ("3", InvalidInput),
        ("ftevent-abc-", InvalidInput),
        ("ftevent-abc-x", InvalidInput),
        ("ftevent-abc-²", InvalidInput),
        ("ftckpt-abc-3", InvalidInput),
    ],
)
def test_cursors_of_other_jobs_are_refused(cursor, refusal):
    assert number_of("ftevent-abc-3", "ftjob-abc", "ftevent") == 3
    with pytest.raises(refusal, match="after"):
        number_of(cursor, "ftjob-abc", "ftevent")


def test_a_whole_number_is_an_integer_however_it_is_written():
    fields = {"hyperparameters": {"n_epochs": 2.0}, "seed": 3.0, "privtune": {"tail": 1.0, "train": {"max_steps": 7.0}}}
    made = spec(**fields)
    assert (made.train.epochs, made.train.seed, made.tail, made.train.max_steps) == (2, 3, 1, 7)
