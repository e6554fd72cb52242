"""A cloud of one's own beside this process: its key is kept, and its failure says where to look."""

import stat

import pytest

from privtune.device.client import local_cloud
from privtune.shared.errors import CloudUnreachable, PackageMissing

SERVES = """#!/bin/sh
echo $PRIVTUNE_CLOUD_BOOTSTRAP_KEY
for one; do case $before in --ready-file) echo '{"url": "http://127.0.0.1:9"}' > "$one.new"; mv "$one.new" "$one";; esac
before=$one; done
exec sleep 60
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Stands in for Python, which would be the cloud."""

    def say(text):
        file = tmp_path / "python"
        file.write_text(text)
        file.chmod(0o755)
        monkeypatch.setattr(local_cloud.sys, "executable", str(file))

    return say


def test_it_starts_with_a_key_that_it_keeps_and_stops(command, tmp_path):
    command(SERVES)
    keys = []
    for _ in range(2):
        cloud = local_cloud.LocalCloud({"minilm": "x"}, tmp_path / "cloud")
        keys.append(cloud.api_key)
        assert cloud.url == "http://127.0.0.1:9"
        cloud.stop()
        assert cloud._process.poll() is not None
    assert keys[0] == keys[1]
    assert keys[0] in (tmp_path / "cloud" / "cloud.log").read_text()
    assert stat.S_IMODE((tmp_path / "cloud" / "key").stat().st_mode) == 0o600
    assert list((tmp_path / "cloud").glob("ready*")) == []


def test_one_that_ends_says_where_to_look(command, tmp_path):
    command("#!/bin/sh\nexit 3\n")
    with pytest.raises(CloudUnreachable, match=r"did not start; .*cloud\.log says why"):
        local_cloud.LocalCloud({}, tmp_path / "cloud")


def test_without_the_extra_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("privtune.shared.packages.importlib.util.find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match="a local cloud needs the package peft"):
        local_cloud.LocalCloud({}, tmp_path)
