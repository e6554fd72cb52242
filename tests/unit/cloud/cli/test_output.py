"""What each command prints, for people and for programs."""

import json

import pytest
import typer
from typer.testing import CliRunner

from privtune.cloud.cli import app

NO_RESULT = {("serve",)}  # it serves until it is ended


def commands(group=None, path=()):
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda one: " ".join(one) if type(one) is tuple else ""
)
def test_each_command_that_prints_a_result_prints_it_for_programs(path, command):
    takes = any("--json" in parameter.opts for parameter in command.params)
    assert takes == (path not in NO_RESULT)


@pytest.fixture
def printed(tmp_path):
    def run(*arguments):
        done = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return run


def test_keys_and_limits_for_programs(printed):
    made = printed("keys", "create", "--owner", "alice")
    assert made["secret"].startswith("pt-")
    assert [key["id"] for key in printed("keys", "list")] == [made["id"]]
    assert printed("keys", "rotate", made["id"])["old"]["id"] == made["id"]
    assert printed("keys", "revoke", made["id"])["revoked_at"]
    assert printed("limits", "set", "alice", "--jobs", "3") == {"owner": "alice", "unfinished_jobs": 3}
    assert printed("limits", "list") == [{"owner": "alice", "unfinished_jobs": 3}]
    assert printed("db", "upgrade")["revision"]


def test_certificates_for_programs(printed):
    assert printed("certs", "create", "--name", "cloud.lan")["ca"].endswith("ca.pem")
