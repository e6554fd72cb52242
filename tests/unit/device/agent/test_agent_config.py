"""agent.yaml: every mistake is reported with the file and the key or the line; paths count from the file."""

import pytest

from privtune.device.agent.agent_config import AgentConfig, load_agent_config
from privtune.shared.errors import DataInvalid, InvalidInput
from tests.support.builders import least_spec

GOOD = """
datasets:
  reviews: {path: reviews.csv, text: body, label: stars, holdout: 0.1}
  dev: {path: /abs/dev.csv}
policy:
  mechanisms: [dchi]
  bounds: {dchi: {noise_ratio: {min: 8}}}
local_models:
  minilm: /models/minilm
"""


def load(tmp_path, content):
    file = tmp_path / "agent.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_agent_config(file)


def job(**changes):
    return least_spec(**{"model": "minilm"} | changes)


def test_a_whole_file(tmp_path):
    (tmp_path / "reviews.csv").write_text("body,stars\na,1\n")
    config = load(tmp_path, GOOD)
    train, held_out = config.sources(job())
    assert train.path == str(tmp_path / "reviews.csv")
    assert (train.columns.text, train.columns.label, train.part, held_out.part) == (
        "body",
        "stars",
        "train",
        "held-out",
    )
    assert config.local_models == {"minilm": "/models/minilm"}
    assert config.policy.mechanisms == ("dchi",)


def test_conversations_with_the_owners_own_template(tmp_path):
    content = "datasets:\n  reviews: {path: chats.jsonl, messages: turns, chat_template: own.jinja, holdout: 0.1}\n"
    train, held_out = load(tmp_path, content).sources(job(task="causal-lm"))
    assert train.columns.messages == "turns"
    assert train.chat_template == held_out.chat_template == str(tmp_path / "own.jinja")


def test_the_owners_terms_count_from_the_file(tmp_path):
    content = "datasets:\n  reviews: {path: a.csv, own_terms: terms.txt, holdout: 0.1}\n"
    train, held_out = load(tmp_path, content).sources(job())
    assert train.own_terms == held_out.own_terms == str(tmp_path / "terms.txt")


def test_a_named_held_out_set_comes_before_the_share(tmp_path):
    train, held_out = load(tmp_path, GOOD).sources(job(validation_file="device://dev"))
    assert (train.part, held_out.path, held_out.part) == ("all", "/abs/dev.csv", "all")


@pytest.mark.parametrize("field", ["training_file", "validation_file"])
def test_a_job_that_names_another_set(tmp_path, field):
    config = load(tmp_path, GOOD)
    assert not config.knows("device://other")
    with pytest.raises(InvalidInput, match="no data set named device://other"):
        config.sources(job(**{field: "device://other"}))


@pytest.mark.parametrize("handle", [None, "", "device://", "device://revie", "device://Reviews", "file-123"])
def test_only_whole_names_are_known(tmp_path, handle):
    assert not load(tmp_path, GOOD).knows(handle)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("datasets: [\n", DataInvalid, r"agent\.yaml, line 2, column 1: not valid YAML"),
        ("datasets:\n\t- x", DataInvalid, r"agent\.yaml, line 2, column 1: not valid YAML"),
        ("a: !!python/object:os.system {}", DataInvalid, "not valid YAML"),
        ("", DataInvalid, "is empty; it needs at least `datasets:`"),
        ("# nothing\n", DataInvalid, "is empty"),
        (b"datasets: {caf\xe9: {path: x}}", DataInvalid, "is not UTF-8"),
        ("- a\n- b\n", InvalidInput, "not a list"),
        ("just text", InvalidInput, "not a str"),
        ("dataset: {}", InvalidInput, "unknown key dataset; known here: datasets, policy, local_models"),
        ("base: /", InvalidInput, "unknown key base; known here: datasets"),
        (
            "datasets: {a: {path: x, labels: y}}",
            InvalidInput,
            r"unknown key datasets\.a\.labels; known here: path, text",
        ),
        ("policy: {max_epoch: 3}", InvalidInput, r"unknown key policy\.max_epoch; known here: protections, mechanisms"),
        ("policy: {bounds: {dchi: {noise_ratio: {least: 1}}}}", InvalidInput, "known here: min, max, allowed"),
        ("datasets: {a: {}}", InvalidInput, r"datasets\.a\.path: field required"),
        ("datasets: {a: {path: ''}}", InvalidInput, r"datasets\.a\.path"),
        ("datasets: {'a b': {path: x}}", InvalidInput, "'a b' can't be a data set's name"),
        ("datasets: {a: {path: x, holdout: 1}}", InvalidInput, r"datasets\.a\.holdout"),
        ("datasets: {a: {path: x, limit: 0}}", InvalidInput, r"datasets\.a\.limit"),
        ("policy: {mechanisms: [quantum]}", InvalidInput, "quantum"),
    ],
)
def test_each_mistake_is_told_in_one_line(tmp_path, content, kind, words):
    with pytest.raises(kind, match=words) as caught:
        load(tmp_path, content)
    assert "agent.yaml" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataInvalid, match=r"no\.yaml can't be read: No such file"):
        load_agent_config(tmp_path / "no.yaml")


def test_an_empty_configuration_knows_nothing_and_refuses_clean_vectors():
    config = AgentConfig()
    assert not config.knows("device://reviews")
    assert config.policy.protections == ("names",)
    assert not config.policy.allow_shared_labels
