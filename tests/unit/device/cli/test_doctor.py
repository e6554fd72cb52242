"""`privtune doctor`: what is wrong is a line with a remedy, and the exit code is that of the failure."""

import json

import pytest

from privtune.device.cli import main
from privtune.device.cli.doctor_checks import _clock


@pytest.fixture
def examined(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRIVTUNE_HOME", str(tmp_path / "home"))
    for name in ("PRIVTUNE_CLOUD", "PRIVTUNE_API_KEY", "PRIVTUNE_CA", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def run(*options, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            main(["doctor", "--json", *options])
        found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
        assert all(one["remedy"] for one in found.values() if one["status"] != "ok")
        return int(caught.value.code or 0), found

    return run


def test_a_machine_without_a_cloud(examined):
    code, found = examined()
    assert code == 0
    assert found["cloud"]["status"] == "warning"
    assert {"versions", "torch", "extras", "settings", "home", "disk", "proxy", "certificates"} <= found.keys()


def test_a_cloud_that_is_away(examined):
    code, found = examined("--cloud", "http://127.0.0.1:9", "--api-key", "pt-x")
    assert code == 8
    assert found["cloud"]["status"] == "failed"


def test_a_wrong_authority_and_a_wrong_proxy(examined, tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    code, found = examined(
        "--cloud", "https://cloud.example", "--ca-cert", str(tmp_path / "ca.pem"), https_proxy="socks5://proxy:1"
    )
    assert code == 2
    assert found["certificates"]["status"] == found["proxy"]["status"] == "failed"


def test_a_home_that_cannot_be_made(examined, tmp_path):
    (tmp_path / "file").write_text("")
    code, found = examined("--home", str(tmp_path / "file" / "home"))
    assert code == 13
    assert found["home"]["status"] == "failed"


def test_a_file_with_the_key_that_others_can_read(examined, tmp_path):
    (tmp_path / "home").mkdir()
    file = tmp_path / "home" / "privtune.yaml"
    file.write_text("api_key: pt-x\n")
    file.chmod(0o644)
    assert examined()[1]["settings"]["status"] == "warning"
    file.chmod(0o600)
    assert examined()[1]["settings"]["status"] == "ok"


@pytest.mark.parametrize(("ahead_s", "status"), [(0, "ok"), (59, "ok"), (-61, "warning"), (86_400, "warning")])
def test_a_clock_that_is_off(ahead_s, status):
    assert _clock(ahead_s).status == status
