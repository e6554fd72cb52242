"""Where the device's files are, and ids that would put them elsewhere."""

from pathlib import Path

import pytest

from privtune.device.home.failure_log import log_failure
from privtune.device.home.job_lock import job_lock
from privtune.device.home.paths import check_job_id, default_home, holds_job, job_path, private_folder
from privtune.shared.errors import InvalidInput


@pytest.mark.parametrize("job_id", ["", ".", "..", "a/b", "../x", "-rf", "a b", "a\x00", "ü", "x" * 129, "a\n"])
def test_an_id_that_is_none_names_no_folder(tmp_path, job_id):
    with pytest.raises(InvalidInput, match="is not a job id"):
        check_job_id(job_id)
    for action in (holds_job, job_path):
        with pytest.raises(InvalidInput):
            action(tmp_path, job_id)


def test_the_home_follows_the_environment(monkeypatch):
    monkeypatch.setenv("PRIVTUNE_HOME", "~/elsewhere")
    assert default_home() == Path.home() / "elsewhere"
    monkeypatch.delenv("PRIVTUNE_HOME")
    assert default_home() == Path.home() / ".privtune"


def mode_of(folder):
    return folder.stat().st_mode & 0o7777


def test_the_home_is_its_owners_alone(tmp_path):
    made, open_one, shared = tmp_path / "made", tmp_path / "open", tmp_path / "shared"
    with job_lock(made, "ftjob-1"):
        assert mode_of(made) == 0o700
    open_one.mkdir(mode=0o755)
    log_failure(open_one, "what happened")
    assert mode_of(open_one) == 0o700
    shared.mkdir()
    shared.chmod(0o1777)
    assert not private_folder(shared)
    assert mode_of(shared) == 0o1777


def test_the_private_log_keeps_control_characters_escaped(tmp_path):
    assert "\\x1b]52" in log_failure(tmp_path, "a\n\x1b]52;c;eA==\x07").read_text()
