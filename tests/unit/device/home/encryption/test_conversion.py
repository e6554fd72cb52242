"""A home is encrypted and decrypted whenever it is killed; its key opens it and nothing else does."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from privtune.device.account.ledger import Ledger
from privtune.device.home.encryption import conversion, vault_key
from privtune.device.home.encryption.conversion import decrypt_home, encrypt_home, status_of, unlock
from privtune.device.home.encryption.vault_key import PASSPHRASE_VARIABLE
from privtune.device.home.failure_log import log_failure
from privtune.device.home.run_locks import opened
from privtune.device.link.identity import Identity, authority_file, identity_file, load_identity
from privtune.device.release.record_keys import RecordKey
from privtune.device.release.release_store import EncodedRelease, ReleaseStore
from privtune.shared import at_rest, files
from privtune.shared.errors import ArtifactCorrupt, HomeLocked, InvalidInput, JobConflict
from privtune.shared.files import write_json
from tests.support.keyrings import use_keyring

PLANTED = b"Wilhelmina Brandt"
KEY = RecordKey(0, b"k" * 16)


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setitem(vault_key._SCRYPT, "n", 1 << 10)
    return use_keyring(monkeypatch)


@pytest.fixture
def home(tmp_path, kept):
    made = tmp_path / "home"
    fill(made)
    yield made
    at_rest.use_vault(made, None)


def fill(home):
    (home / "jobs/one/checkpoints").mkdir(parents=True)
    (home / "jobs/one/job.json").write_bytes(PLANTED)
    (home / "jobs/one/checkpoints/.step.part").write_bytes(PLANTED)
    (home / "jobs/one/lock").touch()
    (home / "policy.yaml").write_text("budget: {}\n")
    log_failure(home, PLANTED.decode())
    with Ledger(home) as ledger, releases(home) as store:
        ledger.note("tested", {"who": PLANTED.decode()})
        store.put_many({KEY: EncodedRelease(1, PLANTED)})


def releases(home):
    return closing(ReleaseStore(home / "releases.sqlite", "a" * 64, 1 << 20))


def contents(home):
    """Everything that the home knows, read through its stores."""
    with Ledger(home) as ledger, releases(home) as store:
        found = [entry["who"] for entry in ledger.entries()], store.get_many([KEY])[KEY].data
    names = ("jobs/one/job.json", "jobs/one/checkpoints/.step.part", "privtune.log")
    return *found, *(at_rest.read_bytes(home / name) for name in names), (home / "policy.yaml").read_text()


def on_disk(home):
    return b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


def test_there_and_back(home, kept):
    before = contents(home)
    assert PLANTED in on_disk(home)
    assert encrypt_home(home, "keyring") == 5
    assert PLANTED not in on_disk(home)
    status = status_of(home)
    assert (status.state, status.kept_by, status.encrypted, status.clear) == ("encrypted", "keyring", 5, 0)
    unlock(home)
    assert contents(home) == before
    at_rest.use_vault(home, None)
    assert decrypt_home(home) == 5
    assert contents(home) == before
    assert not kept.kept
    with pytest.raises(InvalidInput, match="not encrypted"):
        decrypt_home(home)


def test_a_log_that_was_converted_goes_on(home):
    encrypt_home(home, "keyring")
    unlock(home)
    log_failure(home, "the second")
    assert PLANTED.decode() in (log := at_rest.read_text(home / "privtune.log"))
    assert "the second" in log


def test_a_log_or_transcript_that_a_kill_left_without_a_byte_is_empty(home):
    encrypt_home(home, "keyring")
    unlock(home)
    (torn := home / "jobs/one/0001.frames").touch()
    assert at_rest.size_of(torn) == 0
    assert at_rest.read_bytes(torn) == b""
    (home / "jobs/one/job.json").write_bytes(b"")
    with pytest.raises(OSError, match="damaged"):
        at_rest.read_bytes(home / "jobs/one/job.json")


def test_without_its_key_nothing_is_read_or_written(home):
    encrypt_home(home, "keyring")
    for use in (
        lambda: at_rest.read_bytes(home / "jobs/one/job.json"),
        lambda: write_json(home / "jobs/one/new.json", {}),
        lambda: Ledger(home),
        lambda: at_rest.append(home / "privtune.log"),
    ):
        with pytest.raises(HomeLocked):
            use()
    assert not (home / "jobs/one/new.json").exists()
    assert log_failure(home, "a failure") is None


def test_a_file_in_clear_or_of_another_place_is_not_taken(home):
    (home / "jobs/two").mkdir()
    (home / "jobs/two/job.json").write_bytes(b"two")
    encrypt_home(home, "keyring")
    unlock(home)
    (home / "jobs/two/job.json").replace(home / "jobs/one/job.json")
    with pytest.raises(OSError, match="another place"):
        at_rest.read_bytes(home / "jobs/one/job.json")
    (home / "jobs/one/job.json").write_bytes(b"in clear")
    with pytest.raises(OSError, match="damaged"):
        at_rest.read_bytes(home / "jobs/one/job.json")
    (home / "releases.sqlite").replace(home / "ledger.sqlite")
    with pytest.raises(ArtifactCorrupt):
        Ledger(home)


def test_a_passphrase_opens_what_it_closed(home, kept, monkeypatch):
    before = contents(home)
    encrypt_home(home, "keyring")
    encrypt_home(home, "passphrase", "a long passphrase")  # the key moves from the keyring
    assert not kept.kept
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "another passphrase")
    with pytest.raises(HomeLocked, match="does not open"):
        unlock(home)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(HomeLocked, match=PASSPHRASE_VARIABLE):
        unlock(home)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a long passphrase")
    unlock(home)
    assert contents(home) == before
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "short")
    with pytest.raises(InvalidInput, match="12 characters"):
        vault_key.new_passphrase()


def test_a_lost_keyring_says_what_opens_the_home(home, kept):
    encrypt_home(home, "keyring")
    kept.kept.clear()
    with pytest.raises(HomeLocked, match="not in this machine's keyring"):
        unlock(home)


def test_a_home_in_use_is_not_converted(home):
    with opened(home), pytest.raises(JobConflict, match="use this home"):
        encrypt_home(home, "keyring")
    assert status_of(home).encrypted == 0


def test_a_killed_run_leaves_a_log_that_is_worked_off_first(home):
    child = os.fork()
    if child == 0:
        with sqlite3.connect(home / "releases.sqlite", isolation_level=None) as database:
            database.execute("CREATE TABLE late (who TEXT)")
            database.execute("INSERT INTO late VALUES (?)", (PLANTED.decode(),))
            os._exit(0)
    os.waitpid(child, 0)
    assert (home / "releases.sqlite-wal").stat().st_size
    encrypt_home(home, "keyring")
    assert PLANTED not in on_disk(home)
    vault = unlock(home)
    with closing(vault.connect(home / "releases.sqlite", 1)) as database:
        assert database.execute("SELECT who FROM late").fetchone() == (PLANTED.decode(),)


def killed(home, monkeypatch, work):
    """Copies of the home as a kill would leave it before each flush, rename and removal of `work`."""
    copies = []

    def counted(real):
        def call(*args, **kwargs):
            copies.append(shutil.copytree(home, home.with_name(f"killed-{len(copies)}"), copy_function=shutil.copy2))
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((files, "flush"), (conversion, "flush"), (os, "replace"), (Path, "unlink")):
            patch.setattr(module, name, counted(getattr(module, name)))
        work()
    return copies


def test_killed_at_every_step_it_is_completed_and_nothing_is_lost(tmp_path, kept, monkeypatch):
    """Every other time the owner converts it back instead."""
    home = tmp_path / "home"
    (home / "jobs").mkdir(parents=True)
    (home / "jobs/job.json").write_bytes(PLANTED)
    with Ledger(home) as ledger:
        ledger.note("tested", {"who": PLANTED.decode()})

    def check(copy):
        if status_of(copy).state == "encrypted":
            assert PLANTED not in on_disk(copy)
            unlock(copy)
        with Ledger(copy) as ledger:
            assert [entry["who"] for entry in ledger.entries()] == [PLANTED.decode()]
        assert at_rest.read_bytes(copy / "jobs/job.json") == PLANTED
        at_rest.use_vault(copy, None)

    def to(state, copy):
        if status_of(copy).state != state:
            encrypt_home(copy, "keyring") if state == "encrypted" else decrypt_home(copy)
        assert (status_of(copy).state, status_of(copy).kept_by != "") == (state, state == "encrypted")
        check(copy)
        shutil.rmtree(copy)

    for state, last in (("encrypted", "in clear"), ("in clear", "encrypted")):
        encrypting = state == "encrypted"
        work = (lambda: encrypt_home(home, "keyring")) if encrypting else (lambda: decrypt_home(home))
        keys = dict(kept.kept)
        copies = killed(home, monkeypatch, work)
        kept.kept.update(keys)  # of the copies that were made before it was forgotten
        assert len(copies) > 8
        for step, copy in enumerate(copies):
            if status_of(copy).state in ("encrypting", "decrypting"):
                with pytest.raises(HomeLocked):
                    unlock(copy)
            keys = dict(kept.kept)
            to(last if step % 2 else state, copy)
            kept.kept.update(keys)
        check(home)


def test_a_devices_key_is_hidden_and_its_clouds_certificate_is_not(home):
    file = identity_file(home, "cloud.example", 8080)
    identity = Identity(device_id="dev-1", key=PLANTED.decode(), certificate="c", received=0.0, life_s=1)
    identity.save(file)
    files.write_text(authority_file(file), "PEM")
    encrypt_home(home, "keyring")
    unlock(home)
    assert PLANTED not in file.read_bytes()
    assert load_identity(file) == identity
    assert authority_file(file).read_text() == "PEM"  # OpenSSL reads it by its path
    identity.save(file)  # a renewal
    assert PLANTED not in file.read_bytes()
    assert load_identity(file) == identity
