"""One look of progress: bars on a terminal, lines in a log, nothing for programs."""

import ast
from pathlib import Path

from privtune.device import cli, client
from privtune.device.client import progress_bars
from privtune.device.client.consoles import console_of
from privtune.device.client.progress_bars import reported


def test_a_log_has_a_line_for_each_finished_step(capsys):
    with reported(quiet=False) as say:
        say("reading", 0.5)
        say("reading", 1.0)
        say("attacking", 0.2)
    assert capsys.readouterr().err == "reading\n"


def test_a_program_has_nothing(capsys):
    with reported(quiet=True) as say:
        say("reading", 1.0)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(capsys, monkeypatch):
    def terminal(stream):
        console = console_of(stream)
        console._force_terminal = True
        return console

    monkeypatch.setattr(progress_bars, "console_of", terminal)
    with reported(quiet=False) as say:
        say("reading", 1.0)
    shown = capsys.readouterr().err
    assert "reading" in shown
    assert "━" * progress_bars.WIDTH in shown


def test_every_bar_has_this_look():
    others = []
    for path in (path for room in (cli, client) for path in Path(room.__file__).parent.rglob("*.py")):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        others += [path.name] if "BarColumn" in names else []
    assert others == ["progress_bars.py"]
