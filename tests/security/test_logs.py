"""What both sides log of a real job at `debug`: its steps and sizes; no text, token ids, labels, tensors or keys."""

import json
import os
import re

import pytest

from tests.support.forked import Forked
from tests.support.world import ProcessCloud, build_world

PLANTED = ("ottilie", "brandvold", "nordlicht", "quarterfinal")
LABELS = ("plaintiffish", "defendantish")
NUMBERS = re.compile(r"(?:-?\d+(?:\.\d*)?(?:e[+-]\d+)?[\],;\s]+\[?){5,}")  # a list of ids, or a tensor


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The two logs of a job that ends well and of one whose data can't be read: (cloud's, agent's)."""
    folder = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIVTUNE_CLOUD_LOG_LEVEL", "debug")
        patch.setenv("PRIVTUNE_CLOUD_LOG_FORMAT", "json")
        world = build_world(folder, ProcessCloud)
    lines = [f"{' '.join(PLANTED)} record {number}\t{LABELS[number % 2]}" for number in range(24)]
    (folder / "good.tsv").write_text("\n".join(["text\tlabel", *lines]))
    (folder / "bad.tsv").write_text("\n".join(["text\tlabel", *lines, "brandvold\tplaintiffish\tnordlicht"]))
    spec = {"train": {"max_steps": 3, "checkpoint_every": 2}}
    codes = []
    for name in ("good", "bad"):
        world.cloud.create_job(world.spec(training_file=f"device://{name}", **spec))
        arguments = ["agent", "--once", "--protect", "none", "--log-level", "debug"]
        arguments += ["--data", f"{name}={folder / name}.tsv", "--log-file", str(folder / "agent.log")]
        agent = Forked(
            "privtune.device.cli", arguments, environment=os.environ | world.environment, output=folder / "screen"
        )
        codes.append(agent.wait(120))
    world.cloud.stop()
    assert codes == [0, 3], (folder / "screen").read_text()
    cloud = "".join(line for line in world.cloud.log.open() if line.startswith("{"))
    return cloud, (folder / "agent.log").read_text(), world


def events(text):
    return [json.loads(line) for line in text.splitlines()]


def test_both_logs_tell_the_whole_job(written):
    cloud, agent, _ = written
    told = [event["msg"] for event in events(agent)]
    assert told.count("a job begins") == 2
    assert "a job has succeeded" in told
    assert events(agent)[-1] | {"time": ""} == {
        "time": "",
        "level": "warning",
        "logger": "privtune.device.agent.agent",
        "msg": "a job stops",
        "job": events(agent)[-1]["job"],
        "reason": "DATA_INVALID",
    }
    for said, by in ((agent, "sent"), (cloud, "received")):
        steps = {(event["kind"], event["step"]) for event in events(said) if event["msg"] == by}
        assert {("forward", 0), ("gradient", 0), ("step", 2)} <= steps
    told = {event["msg"] for event in events(cloud)}
    assert {"a session opens", "request", "audit", "stopping", "stopped"} <= told


def test_neither_log_has_text_labels_ids_numbers_or_keys(written):
    cloud, agent, world = written
    for log in (cloud, agent):
        for word in (*PLANTED, *LABELS, world.cloud.api_key):
            assert word not in log.lower()
        lists = [line for line in log.splitlines() if NUMBERS.search(line)]
        assert lists == []
    assert NUMBERS.search("ids [101, 2043, 17, 4, 99, 102]"), "the pattern finds what it is for"
    assert NUMBERS.search("tensor([[ 0.1, -2.5e-03, 1.0, 4., 0.7, 3.0]])")
