"""Where the device's files are, and ids that would put them elsewhere."""

from pathlib import Path

import pytest

from privtune.device.home.paths import check_job_id, default_home, holds_job, job_path
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
