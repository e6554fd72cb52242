import sys

import pytest

from privtune.cloud import cli


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """`privtune-cloud WORDS` on the data folder `tmp_path`: exit code, stdout, stderr."""
    monkeypatch.setenv("PRIVTUNE_CLOUD_DATA", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["privtune-cloud", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *(text.strip() for text in capsys.readouterr())

    return run
