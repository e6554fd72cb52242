"""`privtune generate` as its owner sees it, against a real cloud process."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from privtune.device.account.ledger import outcomes
from privtune.device.inference.generate import generate_texts
from privtune.device.inference.generation.sampling import Sampling
from tests.support.running import ledger_entries
from tests.support.world import ProcessCloud
from tests.support.writing import chat_world, tune_chat

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = chat_world(tmp_path_factory.mktemp("generate"), ProcessCloud)
    yield built
    built.cloud.stop()


@pytest.fixture(scope="module")
def job(world):
    return tune_chat(world)


def written(world, job, prompt, tokens=10):
    return generate_texts(job, [prompt], world.settings, sampling=Sampling(max_new_tokens=tokens))[0]


def typed(raw):
    return io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8")


def test_a_prompt_is_answered_and_the_reader_is_told_what_is_no_secret(owner, world, job):
    done = owner("generate", job, "--prompt", "say it", "--max-new-tokens", "10")
    assert done.code == 0, done.err
    expected = "".join(char for char in written(world, job, "say it").text if char.isprintable() or char in "\n\t")
    assert done.out == expected + "\n"
    assert "No noise: the cloud receives the clean representations" in done.err
    assert "not secret from the cloud" in done.err


def test_several_prompts_as_json(owner, world, job):
    arguments = ["--prompt", "one", "--prompt", "two", "--json", "--max-new-tokens", "10"]
    lines = [json.loads(line) for line in owner("generate", job, *arguments).out.splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert [line["text"] for line in lines] == [written(world, job, text).text for text in ("one", "two")]
    assert all(line["finish"] in ("stop", "length") and len(line["tokens"]) <= 10 for line in lines)


def test_prompts_from_files_and_the_terminal(owner, world, job, tmp_path, monkeypatch):
    plain, rows = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_text("one\n")
    talk = [{"role": "system", "content": "be brief and clear"}, {"role": "user", "content": "one"}]
    rows.write_text(json.dumps({"prompt": "one"}) + "\n\n" + json.dumps({"messages": talk}) + "\n")
    options = ["--json", "--max-new-tokens", "10"]
    expected = written(world, job, "one").text
    assert json.loads(owner("generate", job, "--file", str(plain), *options).out)["text"] == expected
    monkeypatch.setattr("sys.stdin", typed(b"one\n"))
    assert json.loads(owner("generate", job, "--file", "-", *options).out)["text"] == expected
    first, second = owner("generate", job, "--file", str(rows), *options).out.splitlines()
    assert json.loads(first)["text"] == expected
    assert json.loads(second)["prompt_tokens"] > json.loads(first)["prompt_tokens"]


def test_prompts_of_windows_and_of_the_web(owner, world, job, tmp_path, monkeypatch):
    plain, rows = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_bytes(b"\xef\xbb\xbfone\n")
    rows.write_text('{"prompt": "one\u2028two\x85three"}\n', encoding="utf-8")
    options = ["--json", "--max-new-tokens", "10"]
    expected = written(world, job, "one")
    assert json.loads(owner("generate", job, "--file", str(plain), *options).out)["tokens"] == list(expected.tokens)
    monkeypatch.setattr("sys.stdin", typed(b"\xef\xbb\xbfone\n"))
    assert json.loads(owner("generate", job, "--file", "-", *options).out)["tokens"] == list(expected.tokens)
    done = owner("generate", job, "--file", str(rows), *options)
    assert json.loads(done.out)["tokens"] == list(written(world, job, "one\u2028two\x85three").tokens)


@pytest.mark.parametrize("how", [["--file", "-"], ["--chat"]])
def test_a_terminal_that_is_not_utf8(owner, job, monkeypatch, how):
    monkeypatch.setattr("sys.stdin", typed("Grüße\n".encode("latin-1")))
    done = owner("generate", job, *how)
    assert done.code == 3
    assert "standard input, line 1: not UTF-8 (byte offset 2)" in done.err.strip().splitlines()[-1]


def test_a_conversation_remembers_what_was_said(owner, job, monkeypatch):
    monkeypatch.setattr("sys.stdin", typed(b"one\n\ntwo\n"))
    done = owner("generate", job, "--chat", "--json", "--max-new-tokens", "6")
    first, second = (json.loads(line) for line in done.out.splitlines())
    assert second["prompt_tokens"] > 2 * first["prompt_tokens"] - 10
    assert (first["index"], second["index"]) == (0, 1)


def test_a_conversation_outlives_the_models_context(owner, job, monkeypatch):
    lines = [f"question {number} " + "x" * 60 for number in range(9)] + ["y" * 600, "and now"]
    monkeypatch.setattr("sys.stdin", typed("".join(line + "\n" for line in lines).encode()))
    done = owner("generate", job, "--chat", "--json", "--max-new-tokens", "6")
    assert done.code == 0, done.err
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["index"] for answer in answers] == list(range(10))
    assert all(answer["prompt_tokens"] + 6 <= 512 for answer in answers)
    assert answers[8]["prompt_tokens"] > 300  # as much as fits is kept
    assert "2 old messages left out" in done.err
    assert "at most 512; shorten it. The conversation starts afresh" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Give one of --prompt"),
        (["--prompt", "x", "--chat"], 2, "Give one of --prompt"),
        (["--file", "missing.txt"], 3, "missing.txt can't be read"),
        (["--prompt", "x" * 600], 2, "at most 512; shorten it"),
        (["--prompt", "x", "--top-p", "0"], 2, "top_p"),
        (["--prompt", "x", "--stop", ""], 2, "stop"),
        (["--prompt", "a\ud83d"], 2, "half of a character (U+D83D, character 2)"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(owner, job, arguments, code, words):
    done = owner("generate", job, *arguments)
    assert done.code == code
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("privtune: ")
    assert words in last


@pytest.mark.parametrize(
    "bad",
    [
        '{"text": "two"}',
        '{"prompt": "a\\ud83d"}',
        '{"messages": [{"role": "user", "content": "\\udc00"}]}',
        "[" * 100_000,
    ],
)
def test_a_file_of_prompts_with_a_bad_line_names_it(owner, job, tmp_path, bad):
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "one"}\n' + bad + "\n")
    done = owner("generate", job, "--file", str(rows))
    assert (done.code, "line 2" in done.line) == (3, True)


def test_ctrl_c_ends_the_answer_and_settles_it(world, job):
    command = [
        sys.executable,
        "-m",
        "privtune.device.cli",
        "generate",
        job,
        "--prompt",
        "stop me",
        "--max-new-tokens",
        "450",
    ]
    environment = os.environ | world.environment | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--temperature", "1"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.read(1)  # it writes
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    last = [row for row in outcomes(ledger_entries(world)) if row["source"] == "generations"][-1]
    assert not last["open"]
    assert last["rows"] < 440
