"""`privtune home`: each command ends in one line, and a mistake in one line and a code of docs/exit-codes.md."""

import json

import pytest

from privtune.device.account.home_identity import HomeIdentity
from privtune.device.account.ledger import Ledger
from privtune.device.cli import main
from privtune.shared.errors import HomeOutdated


@pytest.fixture
def command(tmp_path, capsys):
    def run(*arguments, home="home"):
        with pytest.raises(SystemExit) as ended:
            main(["home", *map(str, arguments), "--home", str(tmp_path / home)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), (out + err).strip()

    return run


def test_move_back_up_and_recover(command, tmp_path):
    with Ledger(tmp_path / "home") as ledger:
        ledger.note("tested", {})
    file, backup = tmp_path / "move.tar", tmp_path / "backup.tar"
    assert command("backup", backup) == (0, f"1 file in {backup}.")
    code, line = command("export", file)
    assert (code, "This home draws nothing any more" in line) == (0, True)
    with HomeIdentity(tmp_path / "home") as identity, pytest.raises(HomeOutdated):
        identity.claim()
    assert command("import", file, home="there")[0] == 0
    code, line = command("import", backup, home="there")
    assert (code, "not empty" in line) == (2, True)
    assert command("recover")[0] == 0
    with HomeIdentity(tmp_path / "home") as identity:
        assert identity.claim().count == 1


def test_mistakes_are_one_line(command, tmp_path):
    for arguments, expected, words in [
        (("export", tmp_path / "file"), 2, "no ledger"),
        (("backup", tmp_path / "file"), 2, "no ledger"),
        (("recover",), 2, "no ledger"),
        (("import", tmp_path / "none"), 2, "no file"),
    ]:
        code, line = command(*arguments)
        assert code == expected, line
        assert words in line
        assert "\n" not in line


def test_for_programs(command, tmp_path):
    with Ledger(tmp_path / "home") as ledger:
        ledger.note("tested", {})
    file = tmp_path / "move.tar"
    assert json.loads(command("backup", file, "--json")[1]) == {"files": 1, "file": str(file)}
    assert json.loads(command("export", file, "--json")[1])["moved"]
    assert json.loads(command("recover", "--json")[1])["recovered"]
