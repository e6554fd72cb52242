"""The units of the agent name a command that exists, and what they say of exit codes is documented."""

import configparser
import plistlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from privtune.device.cli import app

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "device" / "deploy"


def systemd():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "privtune-agent.service")
    return unit


def launchd():
    return plistlib.loads((DEPLOY / "dev.privtune.agent.plist").read_bytes())


@pytest.mark.parametrize(
    "words",
    [shlex.split(systemd()["Service"]["ExecStart"]), launchd()["ProgramArguments"]],
    ids=["systemd", "launchd"],
)
def test_a_unit_runs_a_command_that_exists(words):
    program, name, *options = words
    assert program.endswith("/privtune")
    command = typer.main.get_command(app).commands[name]
    known = {flag for parameter in command.params for flag in parameter.opts}
    assert {one for one in options if one.startswith("--")} <= known


def test_exit_codes_are_documented():
    documented = set(re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "exit-codes.md").read_text(), re.MULTILINE))
    service = systemd()["Service"]
    assert {*service["RestartPreventExitStatus"].split(), service["SuccessExitStatus"]} <= documented


def test_both_keep_what_they_write_private():
    assert int(systemd()["Service"]["UMask"], 8) == launchd()["Umask"] == 0o077
