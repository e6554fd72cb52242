"""A protection from option to cloud: its settings travel, its name does not, and three lines say what is read."""

from __future__ import annotations

import json

import pytest

from privtune.device.cli.planned_job import PlannedJob
from privtune.device.link.rest import job_spec
from privtune.shared.job_spec import JobSpec
from tests.support.owner import TINY, job_id_of
from tests.support.texts import write_sentences
from tests.support.world import ProcessCloud, build_world

LINES = ("Text: ", "Labels: ", "Always: ")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("protections"), ProcessCloud)
    yield built
    built.cloud.stop()


def said(done):
    """The lines about what the cloud can read, in order."""
    return [line for line in done.out.splitlines() if line.startswith(LINES)]


def test_without_an_option_names_is_the_protection_and_the_cloud_gets_settings_only(owner):
    done = owner("finetune", "--model", "enc", "--data", owner.world.data.path, *TINY)
    assert done.code == 0, done.err
    assert "protection names: what identifies is replaced" in done.out
    assert [line.split(": ")[0] + ": " for line in said(done)] == list(LINES)
    assert done.out.index("Text: ") < done.out.index("submitted job")
    job = owner.world.cloud.control.get_job(job_id_of(done))
    assert job_spec(job).surrogates.replace == "identifying"
    assert job_spec(job).mechanism.name == "none"
    assert "protect" not in json.dumps(job)
    again = owner("finetune", "--job", job_id_of(done))
    assert said(again) == said(done)


def test_what_the_cloud_refuses_is_said_before_anything_of_a_job(owner):
    for arguments, changes, code in (
        (("--model", "nope"), {}, 4),
        ((), {"PRIVTUNE_API_KEY": "pt-" + "x" * 40}, 5),
    ):
        done = owner.finetune(*arguments, **changes)
        assert done.code == code
        assert "protection none: " not in done.out
        assert said(done) == []


def test_all_takes_half_of_a_model_of_other_depth_and_says_so(owner):
    done = owner.finetune("--protect", "all", "--another-noise")
    assert done.code == 0, done.err
    assert "(cut 1, tail 1, skip tuned" in done.out
    assert "overridden" not in done.out
    assert job_spec(owner.world.cloud.control.get_job(job_id_of(done))).cut == 1
    assert PlannedJob().spec({}, "all", str(owner.world.models["enc"])).cut == 1
    assert PlannedJob(cut=2, tail=0).spec({}, "all", "no-such-model").cut == 2


def test_the_models_that_a_job_can_name_are_listed(owner):
    listed = owner("models")
    assert listed.code == 0, listed.err
    heading, *rows = [line.split("  ") for line in listed.out.splitlines()]
    assert heading[0] == "MODEL"
    assert {row[0] for row in rows} == set(owner.world.models)
    (enc,) = [line for line in listed.out.splitlines() if line.startswith("enc ")]
    assert enc.split()[1:] == ["classification", "3", "0", "to", "2", "48", "tokens"]
    offered = json.loads(owner("models", "--json").out)
    assert {model["id"] for model in offered} == set(owner.world.models)
    wrong = owner("finetune", "--model", "minilm", "--data", owner.world.data.path, "--protect", "all", *TINY)
    assert "does not offer the model 'minilm'" in wrong.err
    assert "privtune models" in wrong.err


def test_an_overridden_setting_is_said(owner):
    done = owner.finetune("--protect", "words", "--cut", "1", "--param", "codes=4", "--another-noise")
    assert done.code == 0, done.err
    assert "overridden: cut 1 instead of 2; mechanism params codes=4" in done.out
    assert "no longer `words`" in done.out
    assert "no label and no gradient leaves" in said(done)[1]


def test_a_job_over_rest_that_says_nothing_is_one_under_names_and_the_default_policy_admits_it(owner, tmp_path):
    spec = JobSpec(model="enc", training_file="device://sentences", train={"max_steps": 2, "max_length": 16})
    job_id = owner.world.cloud.create_job(spec)
    data = write_sentences(tmp_path / "other.tsv", 40, seed=7)  # the world's were drawn under other settings
    done = owner("agent", "--once", "--poll", "0.1", "--data", f"sentences={data}")
    assert done.code == 0, done.err
    assert "the cloud can read every word that is not replaced" in said(done)[0]
    assert owner.world.cloud.status(job_id)[0] == "succeeded"
