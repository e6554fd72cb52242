"""`privtune` at its edges: help that teaches and is quick, mistakes that end in one line, codes that are documented."""

import inspect
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from privtune.device.cli import app, main
from privtune.device.cli.error_report import guarded, report
from privtune.shared.errors import InvalidInput, PrivTuneError, StorageFull, all_errors

DOCUMENTED = Path(__file__).parents[4] / "docs" / "exit-codes.md"


def commands(group=None, path=()):
    """Every command that `--help` shows, as its words; new ones are found by themselves."""
    group = group or typer.main.get_command(app)
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


COMMANDS = list(commands())


def privtune(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PRIVTUNE")}
    command = [sys.executable, "-m", "privtune.device.cli", *arguments]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=60)


def ended(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_every_command_is_among_those_tested():
    assert {("finetune",), ("agent",), ("jobs", "events"), ("predict",), ("export",), ("version",)} <= set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "privtune")
def test_each_command_has_help_that_says_what_it_does(path, capsys):
    code, out, _ = ended(capsys, *path, "--help")
    assert code == 0
    assert " ".join(("Usage: privtune", *path)) in out
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    prose = [one for one in inspect.cleandoc(command.help or "").split("\n\n")[1:] if not one.startswith("\b")]
    assert command.help
    assert not [one for one in prose if "\n" in one], "typer would keep these line breaks"
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{parameter.name} has no help"


NO_RESULT = {("serve",)}  # it answers until it is ended


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "privtune")
def test_each_command_that_prints_a_result_prints_it_for_programs(path):
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    takes = any("--json" in parameter.opts for parameter in command.params)
    runs = not hasattr(command, "commands") or command.invoke_without_command
    assert takes == (bool(path) and runs and path not in NO_RESULT)


COMPLETED = {("fin",): "finetune", ("finetune", "--prot"): "--protect", ("finetune", "--protect", "wo"): "words"}


@pytest.mark.parametrize("words", COMPLETED, ids=" ".join)
def test_the_shell_completes(words):
    line = {"COMP_WORDS": " ".join(("privtune", *words)), "COMP_CWORD": str(len(words))}
    done = privtune(_PRIVTUNE_COMPLETE="complete_bash", **line)
    assert COMPLETED[words] in done.stdout.split()


HEAVY = "torch transformers pyarrow grpc numpy httpx yaml safetensors rich.progress"
LIGHT_PROBE = f"""
import sys
from privtune.device.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("loaded:", *sorted(set("{HEAVY}".split()) & set(sys.modules)))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["finetune", "--help"], ["jobs", "list", "--help"], ["nonsense"]])
def test_nothing_heavy_is_loaded_to_show_help(arguments):
    done = subprocess.run([sys.executable, "-c", LIGHT_PROBE, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_commands_without_a_model_do_without_torch():
    for arguments in (["version"], ["mechanisms"], ["jobs", "list", "--cloud", "http://127.0.0.1:1"]):
        done = subprocess.run(
            [sys.executable, "-c", LIGHT_PROBE, *arguments], capture_output=True, text=True, timeout=60
        )
        assert "torch" not in done.stdout.splitlines()[-1], arguments


def test_help_answers_at_once():
    """In seconds of CPU, which other work on the machine does not stretch."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert privtune("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["finetune", "--nonsense"], "No such option"),
        (["finetune", "--cut", "two"], "--cut"),
        (["finetune", "--labels", "public"], "--labels"),
        (["finetune", "--precision", "fp16"], "--precision"),
        (["jobs"], "Usage"),
        (["jobs", "show"], "JOB"),
        (["export", "ftjob-x"], "DIR"),
        (["jobs", "list", "--limit", "0"], "--limit"),
        (["predict", "ftjob-x", "--batch-size", "0"], "--batch-size"),
        (["finetune", "--threads", "0"], "--threads"),
        (["audit", "--threads", "0"], "--threads"),
        (["tables", "build", "--threads", "0"], "--threads"),
    ],
)
def test_usage_errors_name_what_is_wrong(arguments, words, capsys):
    code, out, err = ended(capsys, *arguments)
    assert code == InvalidInput.exit_code
    assert words in out + err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["audit"], ["tables", "build", "--model", "/nowhere", "--mechanism", "dchi"]], ids=["audit", "tables"]
)
def test_commands_that_compute_take_threads(arguments, capsys, monkeypatch):
    given: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", given.append)
    code, _, err = ended(capsys, *arguments, "--threads", "1")
    assert code != 0
    assert err.startswith("privtune: ")
    assert given == [1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune"], "--model is missing; `privtune models` lists"),
        (["finetune", "--model", "m"], "--data is missing"),
        (["predict", "ftjob-x"], "--text (once or more) or --data"),
        (["predict", "ftjob-x", "--text", "a", "--data", "b"], "--text (once or more) or --data"),
        (["predict", "ftjob-x", "--text", "  "], "--text is empty"),
        (["jobs", "show", "../../etc", "--cloud", "http://127.0.0.1:1", "--api-key", "pt-x"], "is not a job id"),
        (["agent"], "--config agent.yaml or --data NAME=FILE"),
        (["agent", "--data", "reviews"], "NAME=FILE is expected"),
        (["agent", "--data", "a b=x.csv"], "can't be a data set's name"),
    ],
)
def test_incomplete_commands_end_in_one_line(arguments, words, capsys, monkeypatch):
    for name in ("PRIVTUNE_CLOUD", "PRIVTUNE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = ended(capsys, *arguments)
    assert code == InvalidInput.exit_code
    assert words in err
    assert err.startswith("privtune: ")
    assert err.count("\n") == 1


def test_version_and_mechanisms_speak_json(capsys):
    code, out, _ = ended(capsys, "version", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"version", "protocol_version", "oldest_protocol_version"}
    code, out, _ = ended(capsys, "mechanisms", "--json")
    assert code == 0
    assert {"none", "dchi", "gaussian"} <= {row["name"] for row in json.loads(out)}


def test_threads_reach_torch():
    code = (
        "import privtune.device.cli.options as o, torch; before = torch.get_num_threads(); o.limit_threads(None);"
        "assert torch.get_num_threads() == before; o.limit_threads(3); print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "3", done.stderr


# ---- how failures end


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.reason)
def test_every_error_ends_with_its_documented_code_in_one_line(kind, capsys):
    code = report(kind("two\nlines  of \x1b text"), debug=False)
    assert re.search(rf"^\| {code} \| `{kind.reason}` \|", DOCUMENTED.read_text(), re.MULTILINE)
    assert capsys.readouterr().err.count("\n") == 1


def test_debug_shows_the_traceback_and_the_detail(capsys):
    try:
        raise InvalidInput("what happened", detail="why exactly")
    except InvalidInput as error:
        report(error, debug=True)
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "detail: why exactly" in err
    assert err.splitlines()[-1] == "privtune: what happened"


def failing(error, home):
    @guarded
    def command(*, home):
        raise error

    with pytest.raises(PrivTuneError) as caught:
        command(home=home)
    return caught.value


def test_an_unexpected_failure_is_one_line_and_its_traceback_is_in_a_private_log(tmp_path):
    error = failing(ZeroDivisionError("secret detail"), tmp_path)
    log = tmp_path / "privtune.log"
    assert error.exit_code == 1
    assert "ZeroDivisionError" in error.message
    assert "secret detail" not in error.message
    assert str(log) in error.message
    assert "secret detail" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_details_of_a_known_failure_go_to_the_log_only(tmp_path):
    error = failing(InvalidInput("public", detail="label 'flu'"), tmp_path)
    assert error.message == "public"
    assert "label 'flu'" in (tmp_path / "privtune.log").read_text()


def test_a_log_that_can_not_be_written_is_no_second_failure(tmp_path):
    (tmp_path / "file").write_text("")
    error = failing(ZeroDivisionError(), tmp_path / "file")
    assert "--debug" in error.message


@pytest.mark.parametrize("number", [28, 122, 30, 27])
def test_a_full_disk_anywhere_is_told_as_such(number, tmp_path):
    error = failing(OSError(number, os.strerror(number), "somewhere.txt"), tmp_path)
    assert isinstance(error, StorageFull)
    assert "somewhere.txt" in error.message


def test_debug_from_the_environment(tmp_path):
    done = privtune("finetune", "--model", "m", "--data", str(tmp_path / "no.csv"), PRIVTUNE_DEBUG="1")
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("privtune: ")


@pytest.mark.parametrize(
    "arguments",
    [("generate", "ftjob-1", "--prompt", "a"), ("ledger",), ("transcript", "show", "ftjob-1"), ("version",)],
)
def test_a_user_without_a_home_folder_is_told_what_to_set(capsys, monkeypatch, arguments):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("pwd.getpwnam", unknown)
    monkeypatch.setenv("PRIVTUNE_CLOUD", "http://127.0.0.1:9")
    monkeypatch.setenv("PRIVTUNE_API_KEY", "pt-x")
    for name in ("HOME", "PRIVTUNE_HOME"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = ended(capsys, *arguments)
    if arguments == ("version",):
        assert code == 0
        return
    assert code == 2
    assert err.startswith("privtune: There is no home folder: HOME is not set")
    assert err.count("\n") == 1
    code, _, err = ended(capsys, *arguments, "--home", "~/there")
    assert (code, err.count("\n")) == (2, 1)
