"""A whole job on an encrypted home, with every command that an owner uses: nothing private is on the disk in clear."""

from __future__ import annotations

import pytest

from privtune.device.home.encryption import vault_key
from privtune.device.home.encryption.sealed_files import is_sealed
from privtune.device.home.encryption.vault_key import PASSPHRASE_VARIABLE
from tests.support.keyrings import use_keyring
from tests.support.owner import Owner
from tests.support.planted import MAX_LENGTH, OWN_TERM, PEOPLE, planted, planted_world
from tests.support.world import ProcessCloud

# Parts of the public model, locks, and the file that holds the wrapped key.
IN_CLEAR = ("bottoms/", "open/", "runs/", ".alone.lock", ".privtune.log.lock", "vault.json")
PASSPHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = planted_world(tmp_path_factory.mktemp("encrypted"), ProcessCloud)
    yield built
    built.cloud.stop()


def files(home):
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def in_clear(home):
    """Private files that are not encrypted: any that is neither known to be public nor sealed."""
    for name, data in files(home).items():
        if name.endswith(".sqlite"):
            sealed = not data.startswith(b"SQLite")
        else:
            with (home / name).open("rb") as file:
                sealed = is_sealed(file)
        if not (sealed or name.startswith(IN_CLEAR) or name.endswith(("/lock", "-wal", "-shm"))):
            yield name


def found(home, words):
    """Which words are in a file, or in the name of one."""
    everything = b"\0".join([*(name.encode() for name in files(home)), *files(home).values()])
    return {word for word in words if word.encode() in everything}


def test_nothing_private_is_on_the_disk(world, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(vault_key._SCRYPT, "n", 1 << 10)
    use_keyring(monkeypatch)
    owner, home = Owner(world=world, capsys=capsys), world.settings.home
    data, name = world.data.path, PEOPLE[0][0]
    words = [*planted(), data, world.validation.path, "training_file", "label_names", "chain", OWN_TERM]

    def ok(*arguments, **changes):
        done = owner(*map(str, arguments), **changes)
        assert done.code == 0, done.err
        return done.out + done.err

    home.mkdir()
    (home / "jobs").mkdir()
    assert "Its key: keyring" in ok("home", "encrypt")
    job = ("finetune", "--model", "enc", "--data", data, "--validation", world.validation.path, "--protect", "names")
    job += ("--own-terms", world.data.own_terms, "--record-frames", "--codec", "fp32")
    ok(*job, "--batch-size", 4, "--max-length", MAX_LENGTH, "--max-steps", 4, "--checkpoint-every", 2)
    (job_id,) = [path.name for path in (home / "jobs").iterdir()]
    ok("predict", job_id, "--text", f"{name} said that the soup was cold")
    ok("evaluate", job_id, "--data", world.validation.path)
    ok("transcript", "verify", job_id)
    assert data in ok("ledger").replace("\n", "")
    ok("export", job_id, tmp_path / "adapter")
    assert (owner("predict", job_id, "--text", name, PRIVTUNE_CLOUD="http://127.0.0.1:1")).code != 0
    assert found(home, words) == set()
    assert not list(in_clear(home))
    assert "encrypted" in ok("home", "status")

    assert "passphrase" in owner("home", "backup", str(tmp_path / "copy.tar")).line
    ok("home", "backup", tmp_path / "copy.tar", "--passphrase", **{PASSPHRASE_VARIABLE: PASSPHRASE})
    copy = (tmp_path / "copy.tar").read_bytes()
    assert not [word for word in words if word.encode() in copy]
    there = {"PRIVTUNE_HOME": str(tmp_path / "there"), PASSPHRASE_VARIABLE: PASSPHRASE}
    ok("home", "import", tmp_path / "copy.tar", **there)
    assert not list(in_clear(tmp_path / "there"))
    assert owner("ledger", PRIVTUNE_HOME=there["PRIVTUNE_HOME"]).code == 20
    ok("transcript", "verify", job_id, **there)
    ok("predict", job_id, "--text", f"{name} said that the room was lovely", **there)

    ok("home", "decrypt")
    assert {data, "training_file", "label_names", "chain", OWN_TERM} <= found(home, words)
    assert not (home / "vault.json").exists()
    ok("transcript", "verify", job_id)
