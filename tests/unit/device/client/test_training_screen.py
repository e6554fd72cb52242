"""What the owner sees: every figure once, nothing that steers a terminal, JSON that a machine can read."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from privtune.device.client.training_screen import (
    JsonScreen,
    LiveScreen,
    PlainScreen,
    duration,
    figures,
    make_screen,
    megabytes,
)
from privtune.device.privacy.statements import LabelStatement, Statement
from privtune.device.surrogates.coverage import Coverage
from privtune.device.surrogates.replacement import Replacement
from privtune.device.training.job import RunResult
from privtune.device.training.progress import EvalInfo, StartInfo, StepInfo

STATEMENT = Statement(
    mechanism="dchi",
    row="baseline",
    guarantee="none",
    injection="cut",
    text="Nothing is claimed.",
    caveats=("So it is.",),
)
START = StartInfo(
    job_id="ftjob-1",
    statement=STATEMENT,
    total_steps=10,
    start_step=0,
    records=1200,
    validation_records=0,
    truncated=0,
    dropped=0,
    device_parameters=1538,
    cloud_parameters=221_000,
)
STEP = StepInfo(
    step=1,
    total_steps=10,
    epoch=1,
    loss=0.69314,
    grad_norm=1.0,
    tokens=100,
    tokens_per_second=12345.6,
    bytes_up=3_400_000,
    bytes_down=1_200_000,
    seconds_left=309.0,
)
RESULT = RunResult(
    job_id="ftjob-1",
    folder=Path("/home/x/.privtune/jobs/ftjob-1"),
    steps=10,
    tokens=1000,
    seconds=61.0,
    bytes_up=2_000_000,
    bytes_down=1_000_000,
    metrics={"accuracy": 0.8712},
    statement=STATEMENT,
    label_names=("a", "b"),
    adapter_sha256="0" * 64,
)


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("privtune.device.client.training_screen.time.monotonic", lambda: self.now)


def plain():
    out = io.StringIO()
    return PlainScreen(Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)), out


def test_the_statement_is_told_in_full_before_the_first_step():
    screen, out = plain()
    screen.started(START)
    lines = out.getvalue().splitlines()
    assert lines[0] == "Job ftjob-1: 10 steps, 1,200 records"
    assert "1,538 parameters on this device, about 221,000 in the cloud" in lines[1]
    assert lines[2:] == ["Privacy: Nothing is claimed.", "  - So it is."]


def test_a_job_with_a_tail_trains_nothing_in_the_cloud():
    screen, out = plain()
    screen.started(replace(START, cloud_parameters=0))
    assert "1,538 parameters on this device, none in the cloud." in out.getvalue()


def test_randomised_labels_have_a_statement_of_their_own():
    screen, out = plain()
    screen.started(replace(START, label_statement=LabelStatement(epsilon=2.0, classes=2)))
    claim, *caveats = out.getvalue().splitlines()[4:]
    assert "true with probability 0.881" in claim
    assert "by at most 2 nats" in claim
    assert all(caveat.startswith("  - ") for caveat in caveats)


def test_a_tail_says_that_no_gradient_leaves():
    screen, out = plain()
    screen.started(replace(START, tail=2))
    assert out.getvalue().splitlines()[4].startswith("No gradient leaves: the cloud computes states")


def test_what_was_cut_held_out_and_left_out_is_counted():
    screen, out = plain()
    screen.started(replace(START, validation_records=300, truncated=1234, dropped=5))
    counts = (
        "(300 held out; 1,234 longer than the limit and truncated; 5 left out: nothing to predict within the limit)"
    )
    assert counts in out.getvalue().splitlines()[0]


def test_a_resumed_run_says_from_where_and_a_reconnect_is_one_line():
    screen, out = plain()
    screen.started(replace(START, start_step=4))
    assert out.getvalue().splitlines()[-1] == "Resuming at step 4."
    before = len(out.getvalue().splitlines())
    screen.started(replace(START, start_step=6))
    assert out.getvalue().splitlines()[before:] == ["reconnected; resuming at step 6 of 10"]


def test_a_log_gets_a_step_every_few_seconds_and_always_the_last(monkeypatch):
    clock, (screen, out) = Clock(monkeypatch), plain()
    for step in range(1, 11):
        screen.step(replace(STEP, step=step))
        clock.now += 1.0
    told = [line.split()[1] for line in out.getvalue().splitlines()]
    assert told == ["1/10", "6/10", "10/10"]
    assert "loss 0.6931  12,346 tokens/s  3.4 MB up  1.2 MB down  5:09 left" in out.getvalue()


def test_the_end_says_what_to_do_next():
    screen, out = plain()
    screen.evaluated(EvalInfo(step=10, metrics={"accuracy": 0.8712}))
    screen.finished(RESULT)
    told = out.getvalue()
    assert "held-out records after step 10: accuracy 0.8712" in told
    assert "Done: 10 steps in 1:01, 1,000 tokens, 2.0 MB up, 1.0 MB down." in told
    assert "privtune predict ftjob-1 --text" in told
    assert "privtune export ftjob-1 DIR" in told
    screen, out = plain()
    screen.finished(replace(RESULT, label_names=(), metrics={}, exportable=False))
    assert "Predict" not in out.getvalue()
    assert "privtune generate ftjob-1 --prompt" in out.getvalue()
    assert "Export" not in out.getvalue()
    assert "Held-out" not in out.getvalue()


def test_a_text_from_elsewhere_can_neither_style_nor_steer():
    screen, out = plain()
    screen.message("\x1b[31m[bold red]:skull:\r\nprivtune: done")
    assert out.getvalue() == " [31m[bold red]:skull:  privtune: done\n"


def test_json_lines_carry_every_figure():
    out = io.StringIO()
    with JsonScreen(out) as screen:
        screen.started(START)
        screen.step(STEP)
        screen.evaluated(EvalInfo(step=1, metrics={"loss": 0.5}))
        screen.message("a\nb")
        screen.finished(RESULT)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["started", "step", "evaluated", "message", "finished"]
    assert events[0]["statement"]["text"] == "Nothing is claimed."
    assert (events[1]["loss"], events[1]["bytes_up"]) == (0.69314, 3_400_000)
    assert events[3]["text"] == "a\nb"
    assert events[4]["folder"] == str(RESULT.folder)


def test_a_terminal_gets_a_bar_that_ends_with_the_run():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, highlight=False, markup=False)
    with LiveScreen(console) as screen:
        screen.step(STEP)  # before the start: nothing to move yet
        screen.started(START)
        screen.started(replace(START, start_step=1))
        screen.step(replace(STEP, step=7))
        screen.finished(RESULT)
    told = out.getvalue()
    assert "7/10" in told
    assert "loss 0.6931" in told
    assert told.count("Privacy:") == 1
    assert "Done: 10 steps" in told


@pytest.mark.parametrize(("as_json", "kind"), [(True, JsonScreen), (False, PlainScreen)])
def test_the_screen_fits_its_stream(as_json, kind):
    assert type(make_screen(as_json=as_json, out=io.StringIO())) is kind


def test_numbers_for_people():
    assert megabytes(12_345_678) == "12.3 MB"
    assert [duration(s) for s in (0, 61, 3605, 7509)] == ["0:00", "1:01", "1:00:05", "2:05:09"]
    assert [duration(s) for s in (-1, float("inf"), float("nan"), 1e9)] == ["-"] * 4
    assert figures({"accuracy": 0.87123, "loss": 1.0}) == "accuracy 0.8712, loss 1"


def test_a_job_with_surrogates_says_in_two_lines_what_was_replaced():
    coverage = Coverage(words=1000, replaced=125, content=500, clear=375, kinds={"number": 25, "family name": 100})
    replacement = Replacement(recognisers=("presidio EmailRecognizer", "spacy en"), fingerprint="f", coverage=coverage)
    out = io.StringIO()
    with make_screen(as_json=False, out=out) as screen:
        screen.started(replace(START, replacement=replacement))
    lines = out.getvalue().splitlines()
    at = lines.index("Surrogates replace 12.5% of 1,000 words (family name 100, number 25).")
    assert lines[at + 1] == "In clear: 75.0% of 500 content words, as they are."
    assert lines[at + 2].startswith("Privacy: ")
    out = io.StringIO()
    with make_screen(as_json=True, out=out) as screen:
        screen.started(replace(START, replacement=replacement))
    assert json.loads(out.getvalue())["replacement"]["coverage"]["kinds"] == {"number": 25, "family name": 100}
