"""`privtune enroll` as its owner types it, at a cloud that takes enrolled devices alone."""

import json
import ssl
import sys

import httpx
import pytest

from privtune.cloud.auth.authority import open_authority
from privtune.device.data.source import DataSource
from privtune.device.link.identity import authority_file
from privtune.device.session.run_settings import RunSettings
from tests.support.owner import job_id_of
from tests.support.texts import write_sentences
from tests.support.tiny_models import save_model
from tests.support.world import ProcessCloud, World

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("enrolment")
    model = save_model(folder / "enc", "bert", "classification", num_labels=2)
    cloud = ProcessCloud(folder / "cloud", {"enc": model}, options=["--require-enrolment"], tls=True)
    data = DataSource(path=str(write_sentences(folder / "train.tsv", 60)))
    settings = RunSettings(grpc_address=cloud.grpc_address, api_key=cloud.api_key, home=folder / "home")
    yield World(cloud=cloud, folder=folder, settings=settings, data=data, validation=data, models={"enc": model})
    cloud.stop()


def operator(world, *arguments):
    """`privtune-cloud ARGUMENTS` beside the cloud that serves; what it prints."""
    from privtune.cloud.cli import app

    out = world.folder / "out"
    with pytest.MonkeyPatch.context() as patch, out.open("w") as file:
        patch.setattr(sys, "stdout", file)
        app([*arguments, "--data", str(world.folder / "cloud")], standalone_mode=False)
    return out.read_text().strip()


def token(world, *options):
    return operator(world, "devices", "token", "--owner", "default", *options)


def identity_of(home):
    (file,) = (home / "identities").glob("*.json")
    return file


def test_who_has_not_enrolled_is_told_before_a_job_exists(owner):
    done = owner.finetune(PRIVTUNE_CA=str(owner.world.cloud.ca))
    assert done.code == 5
    assert "privtune enroll" in done.line
    assert owner.jobs() == []


def test_a_device_enrols_once_and_needs_neither_authority_nor_device_key(owner):
    """The key may only read and submit; the authority is the one that the token names."""
    first = token(owner.world, "--label", "laptop")
    done = owner("enroll", "--token", first)
    assert done.code == 0, done.err
    assert "of default, until" in done.out
    file = identity_of(owner.home)
    assert [one.stat().st_mode & 0o777 for one in (file, file.parent)] == [0o600, 0o700]
    assert sorted(path.name for path in file.parent.iterdir()) == sorted([file.name, authority_file(file).name])
    narrow = operator(owner.world, "keys", "create", "--scope", "read", "--scope", "submit")
    trained = owner.finetune(PRIVTUNE_API_KEY=narrow)
    assert trained.code == 0, trained.err
    for command in (("models",), ("predict", job_id_of(trained), "--text", "w1 w2")):
        assert owner(*command, PRIVTUNE_API_KEY=narrow).code == 0
    assert "laptop" in operator(owner.world, "devices", "list")
    again = owner("enroll", "--token", first)
    assert (again.code, again.line) == (5, "This token is used; each lets one device in. Ask the operator for another.")


def test_a_token_names_the_cloud_that_it_is_for(owner, tmp_path):
    """Whoever is in between, or another cloud, learns nothing: the secret half is not sent."""
    good = token(owner.world)
    foreign = f"{open_authority(tmp_path / 'tls').fingerprint}.{good.partition('.')[2]}"
    done = owner("enroll", "--token", foreign, "--home", str(tmp_path / "home"))
    assert done.code == 8
    assert "another authority than the token names" in done.line
    assert "Nothing was sent" in done.line
    assert owner("enroll", "--token", good, "--home", str(tmp_path / "home")).code == 0


@pytest.mark.parametrize("wrong", ["", "x", "pt-" + "k" * 40, "0" * 64])
def test_what_is_no_token_is_told(owner, wrong):
    done = owner("enroll", "--token", wrong)
    assert done.code == 2
    assert "devices token" in done.line


def test_enrolment_never_goes_in_the_clear(owner):
    url = owner.world.cloud.http_url.replace("https:", "http:")
    done = owner("enroll", "--token", token(owner.world), "--cloud", url)
    assert done.code == 2
    assert "needs TLS" in done.line


def test_a_lost_answer_is_asked_for_again(owner, tmp_path, monkeypatch):
    """The cloud has let the device in, which was killed before it heard: the same command gets it its certificate."""
    from privtune.device.link import enrolment

    given, home = token(owner.world), str(tmp_path / "home")
    with monkeypatch.context() as patch:
        patch.setattr(enrolment, "check_certificate", lambda *_: 1 / 0)
        assert owner("enroll", "--token", given, "--home", home).code == 1
    assert owner("enroll", "--token", given, "--home", home).code == 0
    facts = json.loads(identity_of(tmp_path / "home").read_text())
    assert operator(owner.world, "devices", "list").count(facts["device_id"]) == 1


def test_an_owner_sees_and_revokes_devices_over_rest(owner, tmp_path):
    assert owner("enroll", "--token", token(owner.world), "--home", str(tmp_path)).code == 0
    device_id = json.loads(identity_of(tmp_path).read_text())["device_id"]
    admin = operator(owner.world, "keys", "create", "--scope", "admin")
    trust = ssl.create_default_context(cafile=owner.world.cloud.ca)
    headers = {"Authorization": f"Bearer {admin}"}
    with httpx.Client(base_url=owner.world.cloud.http_url, headers=headers, verify=trust) as client:
        listed = client.get("/v1/privtune/devices").json()["data"]
        assert device_id in [one["id"] for one in listed]
        assert client.post(f"/v1/privtune/devices/{device_id}/revoke").json()["revoked_at"]
        assert client.post("/v1/privtune/devices/dev-none/revoke").json()["error"]["code"] == "DEVICE_NOT_FOUND"
    done = owner.finetune("--new", PRIVTUNE_HOME=str(tmp_path))
    assert done.code == 5
    assert "was revoked" in done.line
