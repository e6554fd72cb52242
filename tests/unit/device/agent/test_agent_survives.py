"""Whatever a job raises, the agent sets it aside and waits for the next."""

import json
import os
import sys
import threading

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from privtune.device.agent import agent as agent_module
from privtune.device.agent.agent import Agent
from privtune.device.agent.agent_config import AgentConfig, DataSetting
from privtune.device.agent.attempts import attempt
from privtune.device.home.policy import Policy
from privtune.device.session.run_settings import RunSettings
from privtune.shared.errors import (
    CloudUnreachable,
    InternalError,
    JobHeld,
    PackageMissing,
    RateLimited,
    VersionMismatch,
)
from tests.support.builders import least_spec


class Control:
    """A job API that answers with the next of its lists, again and again with the last; exceptions are raised."""

    url = "http://127.0.0.1:1"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def list_jobs(self, status):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Screen:
    def __init__(self):
        self.messages, self.results = [], []

    def message(self, text):
        self.messages.append(text)

    def finished(self, result):
        self.results.append(result)


def job(name, *, settings=None, **changes):
    spec = least_spec(training_file="device://sentences", **(settings or {}))
    facts = {"id": name, "status": "queued", "created_at": 1, "training_file": spec.training_file}
    return facts | {"privtune": {"spec": spec.model_dump(mode="json")}} | changes


@pytest.fixture
def make(tmp_path, monkeypatch):
    def agent(control, run, **changes):
        monkeypatch.setattr(agent_module, "run_job", run)
        (tmp_path / "data.tsv").write_text("text\tlabel\n")
        return Agent(
            control=control,
            config=AgentConfig(
                datasets={"sentences": DataSetting(path=str(tmp_path / "data.tsv"))},
                policy=Policy(protections=("none",)),
            ),
            settings=RunSettings(grpc_address="127.0.0.1:1", api_key="pt-x", home=tmp_path / "home"),
            screen=Screen(),
            stop=threading.Event(),
            poll_s=0.01,
            **changes,
        )

    return agent


def panic():
    """What a tokenizer of a hostile package makes the Rust library raise: no `Exception`."""
    rigged = {"type": "Precompiled", "precompiled_charsmap": ""}
    whole = json.loads(Tokenizer(WordLevel({}, "")).to_str())
    with pytest.raises(BaseException, match="precompiled_charsmap") as raised:
        Tokenizer.from_str(json.dumps(whole | {"normalizer": rigged}))
    return raised.value


@pytest.mark.parametrize("error", [ValueError("secret text"), RecursionError(), MemoryError(), KeyError("x"), panic()])
def test_a_poison_job_is_set_aside_and_the_next_one_runs(make, tmp_path, error):
    ran = []

    def run(job_id, *_):
        ran.append(job_id)
        if job_id == "ftjob-poison":
            raise error
        agent.stop.set()
        return "done"

    agent = make(Control([job("ftjob-poison"), job("ftjob-zgood")]), run)
    agent.run()
    assert ran == ["ftjob-poison", "ftjob-zgood"]
    assert agent.screen.results == ["done"]
    assert any("ftjob-poison is set aside" in line for line in agent.screen.messages)
    assert not any("secret" in line for line in agent.screen.messages)
    assert type(error).__name__ in (tmp_path / "home" / "privtune.log").read_text()


@pytest.mark.parametrize("error", [CloudUnreachable("x"), RateLimited("x")])
def test_a_job_that_only_has_to_wait_is_tried_again(make, error):
    tries = []

    def run(*_):
        tries.append(1)
        if len(tries) < 3:
            raise error
        agent.stop.set()
        return "done"

    agent = make(Control([job("ftjob-1")]), run)
    agent.run()
    assert agent.screen.results == ["done"]


def test_a_job_that_another_device_holds_is_taken_up_when_its_lease_ends(make):
    tries = []

    def run(job_id, *_):
        tries.append(job_id)
        if job_id == "ftjob-1" and tries.count(job_id) < 3:
            raise JobHeld("Another device holds job ftjob-1. It is free 40 s from now")
        if job_id == "ftjob-1":
            agent.stop.set()
        return job_id

    agent = make(Control([job("ftjob-1"), job("ftjob-2", created_at=2)], [job("ftjob-2")], [job("ftjob-1")]), run)
    agent.held_wait_s = 0.05
    agent.run()
    assert agent.screen.results == ["ftjob-2", "ftjob-1"]  # meanwhile it works on another
    assert sum("Another device holds" in line for line in agent.screen.messages) == 1


OPEN = {"surrogates": {"replace": "nothing"}, "mechanism": {"name": "dchi"}}


@pytest.mark.parametrize(
    ("missing", "settings", "extra"),
    [
        ("wordfreq", {}, "device,surrogates"),
        ("peft", {**OPEN, "tail": 1}, "tail"),
        ("gguf", {**OPEN, "model": "owned"}, "gguf"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_job_that_needs_a_missing_package_waits_for_a_device_that_has_it(
    make, tmp_path, monkeypatch, missing, settings, extra, begun
):
    ran = []

    def run(job_id, *_):
        ran.append(job_id)
        if job_id == "ftjob-a":
            raise PackageMissing("found out late")
        agent.stop.set()
        return "done"

    def refused(*_):
        raise AssertionError("the cloud was told that the job has failed")

    monkeypatch.setattr(agent_module, "report_refusal", refused)
    if not begun:
        monkeypatch.setitem(sys.modules, missing, None)
    later = job("ftjob-b", settings={**OPEN, "model": "plain"})
    agent = make(Control([job("ftjob-a", settings=settings), later]), run, once=True)
    agent.config.local_models["owned"] = "model.gguf"
    agent.run()
    assert ran == [*(["ftjob-a"] if begun else []), "ftjob-b"]
    assert not (tmp_path / "home" / "jobs" / "ftjob-a" / "job.json").exists()
    (said,) = [line for line in agent.screen.messages if "ftjob-a is left" in line]
    assert begun or f"{missing}: pip install '.[{extra}]'" in said


def test_with_once_the_poison_is_an_error_of_the_table(make):
    def run(*_):
        raise ValueError("x")

    with pytest.raises(InternalError, match="ValueError"):
        make(Control([job("ftjob-1")]), run, once=True).run()


@pytest.mark.parametrize("error", [InternalError("500"), VersionMismatch("x"), TypeError("x"), CloudUnreachable("x")])
def test_a_list_that_fails_for_a_while_does_not_end_the_agent(make, error):
    def run(*_):
        agent.stop.set()
        return "done"

    agent = make(Control([], error, [job("ftjob-1")]), run)
    agent.run()
    assert agent.screen.results == ["done"]


def test_an_address_that_is_no_cloud_ends_it_at_once(make):
    with pytest.raises(VersionMismatch):
        make(Control(VersionMismatch("not a PrivTune cloud")), lambda *_: None).run()


@pytest.mark.parametrize("odd", [{"training_file": ["x"]}, {"privtune": "x"}, {"created_at": "x"}, {"created_at": {}}])
def test_a_strange_job_in_the_list_hides_no_other(make, odd):
    def run(*_):
        agent.stop.set()
        return "done"

    agent = make(Control([job("ftjob-odd", **odd), job("ftjob-good")]), run)
    agent.run()
    assert agent.screen.results == ["done"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_who_asks_the_agent_to_end_is_obeyed(make, error):
    def run(*_):
        raise error

    with pytest.raises(type(error)):
        make(Control([job("ftjob-1")]), run).run()


def test_a_job_that_ends_the_process_is_begun_three_times_and_then_set_aside(make, tmp_path):
    """As under `restart: unless-stopped`: each new process sees the same list."""
    ran = tmp_path / "ran"

    def run(job_id, *_):
        with ran.open("a") as file:
            file.write(f"{job_id}\n")
        if job_id == "ftjob-killer":
            os._exit(9)
        agent.stop.set()
        return "done"

    agent = make(Control([job("ftjob-killer"), job("ftjob-zgood")]), run)
    ends = []
    while len(ends) < 9 and ends[-1:] != [0]:
        child = os.fork()
        if child == 0:
            agent.run()
            os._exit(0 if any("3 processes ended in this job" in line for line in agent.screen.messages) else 1)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert ends == [9, 9, 9, 0]
    assert ran.read_text().split() == ["ftjob-killer"] * 3 + ["ftjob-zgood"]


def test_a_job_that_gets_further_each_time_is_not_set_aside(tmp_path):
    for number in range(5):
        (tmp_path / "jobs/ftjob-1/checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"jobs/ftjob-1/checkpoints/step-{number}").touch()
        killed = attempt(tmp_path, "ftjob-1")
        killed.__enter__()
        assert (tmp_path / "jobs/ftjob-1/attempts.json").exists()
    with attempt(tmp_path, "ftjob-1"):
        pass
    assert not (tmp_path / "jobs/ftjob-1/attempts.json").exists()
