"""`privtune evaluate` as an owner runs it: the table, the JSON, and what a mistake looks like."""

import json

import pytest

from tests.support.owner import job_id_of
from tests.support.world import ProcessCloud, build_world

TEMPLATE = "{% for m in messages %}[CLS] {{ m.role }} {{ m.content }} [SEP] {% endfor %}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("world"), ProcessCloud)
    yield built
    built.cloud.stop()


def write_chats(path):
    messages = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4"}]
    rows = [[*messages[:1], messages[1] | {"content": f"w{number}"}] for number in range(24)]
    path.write_text("".join(json.dumps({"chat": row}) + "\n" for row in rows))
    return path


def test_a_chat_model_from_finetune_to_scores(owner, tmp_path):
    data = write_chats(tmp_path / "chats.jsonl")
    (tmp_path / "own.jinja").write_text(TEMPLATE + "{% if add_generation_prompt %}[CLS] assistant {% endif %}")
    chats = (
        "--task",
        "causal-lm",
        "--messages-column",
        "chat",
        "--max-length",
        "24",
        "--protect",
        "none",
        "--tail",
        "1",
    )
    refused = owner.finetune("--model", "dec", *chats, data=data)
    assert refused.code == 4
    assert "no chat template" in refused.err
    assert "--chat-template FILE" in refused.err
    gone = owner.finetune("--model", "dec", *chats, "--chat-template", str(tmp_path / "gone.jinja"), data=data)
    assert (gone.code, gone.line.endswith("gone.jinja: no such file.")) == (2, True)
    done = owner.finetune(
        *("--model", "dec", *chats, "--chat-template", str(tmp_path / "own.jinja"), "--holdout", "0.25"), data=data
    )
    assert done.code == 0, done.err
    job_id = job_id_of(done)

    table = owner("evaluate", job_id)  # the records that were held out
    assert table.code == 0, table.err
    assert "6 records" in table.out
    assert "perplexity" in table.out
    assert "No noise" in table.out

    out = tmp_path / "scores.json"
    scored = owner("evaluate", job_id, "--generate", "3", "--max-new-tokens", "4", "--out", str(out), "--json")
    assert scored.code == 0, scored.err
    printed, written = json.loads(scored.out), json.loads(out.read_text())
    assert {"rouge1", "rouge2", "rougeL", "bleu", "signature"} == set(printed["written"])
    assert "answers" not in printed
    assert written.pop("answers")[0]["prompt"] == [{"role": "user", "content": "w1 w2", "learned": False}]
    assert written == printed
    assert printed["prompts"] == 1  # all of them ask the same, and have six references


def test_mistakes_end_in_one_line(owner, tmp_path):
    job_id = job_id_of(owner.finetune())
    assert "name some with --data" in owner("evaluate", job_id).line
    wrong = owner("evaluate", job_id, "--data", owner.world.validation.path, "--label-column", "star")
    assert wrong.code == 3
    assert 'no column "star" for label. Its columns: "sentence", "label"' in wrong.line
    writing = owner("evaluate", job_id, "--data", owner.world.validation.path, "--generate", "3")
    assert writing.code == 2
    assert "--generate is for language models" in writing.line
    unknown = owner("evaluate", "ftjob-nothing", "--data", owner.world.validation.path)
    assert unknown.code == 6
    nowhere = owner("evaluate", job_id, "--data", owner.world.validation.path, "--out", str(tmp_path / "no" / "x.json"))
    assert "can't be written" in nowhere.line
