"""A home in one file: whole, private, in one place at a time."""

import io
import tarfile
from contextlib import closing

import pytest

from privtune.device.account.home_archive import back_up_home, export_home, import_home
from privtune.device.account.home_identity import HomeIdentity, newest
from privtune.device.account.ledger import Ledger
from privtune.device.home.encryption import vault_key
from privtune.device.home.run_locks import run_lock, runs_under_way
from privtune.device.release.record_keys import RecordKey
from privtune.device.release.release_store import EncodedRelease, ReleaseStore
from privtune.shared.errors import ArtifactCorrupt, HomeLocked, HomeOutdated, InvalidInput, JobConflict, StorageFull

KEY = RecordKey(0, b"k" * 16)


def releases(home):
    return closing(ReleaseStore(home / "releases.sqlite", "a" * 64, 1 << 20))


@pytest.fixture
def home(tmp_path):
    """What a home consists of, and what stays behind."""
    made = tmp_path / "home"
    for name in ("jobs/one/job.json", "jobs/one/lock", "bottoms/x/weights", "policy.yaml", "privtune.log"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(name)
    with Ledger(made) as ledger, releases(made) as store:
        ledger.note("tested", {})
        store.put_many({KEY: EncodedRelease(1, b"drawn once")})
    return made


def claim(home):
    with HomeIdentity(home) as identity:
        return identity.claim()


def test_a_moved_home_is_whole_elsewhere_and_draws_no_more_here(home, tmp_path):
    before, there = claim(home), tmp_path / "there"
    export_home(home, tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    with pytest.raises(HomeOutdated, match="moved"):
        claim(home)
    assert import_home(tmp_path / "file", there) == 4
    found = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert found == {"ledger.sqlite", "releases.sqlite", "jobs/one/job.json", "policy.yaml"}
    assert all(path.stat().st_mode & 0o77 == 0 for path in there.rglob("*") if path.is_file())
    after = claim(there)
    assert (after.home_id, after.count) == (before.home_id, before.count + 1)
    with releases(there) as store, Ledger(there) as ledger:
        assert store.get_many([KEY])[KEY].data == b"drawn once"
        assert [entry["kind"] for entry in ledger.entries()] == ["tested", "moved"]


def test_an_export_is_repeatable(home, tmp_path):
    for name in ("first", "second"):
        assert export_home(home, tmp_path / name) == 4
    with Ledger(home) as ledger:
        assert [entry["kind"] for entry in ledger.entries()] == ["tested", "moved"]


def test_a_home_in_use_is_not_moved(home, tmp_path):
    with run_lock(home), pytest.raises(JobConflict, match="1 run of this home draws"):
        export_home(home, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert claim(home), "it is in use as before"
    assert runs_under_way(home) == 0


def test_an_export_that_fails_leaves_the_home_in_use(home, tmp_path):
    with pytest.raises(StorageFull):
        export_home(home, tmp_path / "nowhere" / "file")
    assert claim(home)


def test_a_backup_is_made_during_a_run(home, tmp_path):
    with newest(home, lambda claim: None), releases(home):
        assert back_up_home(home, tmp_path / "file") == 4
    assert claim(home)
    assert import_home(tmp_path / "file", tmp_path / "there") == 4
    assert claim(tmp_path / "there")


def test_homes_are_not_merged(home, tmp_path):
    back_up_home(home, tmp_path / "file")
    with pytest.raises(InvalidInput, match="not empty"):
        import_home(tmp_path / "file", home)
    with pytest.raises(InvalidInput, match="no ledger"):
        export_home(tmp_path / "empty", tmp_path / "file")
    with pytest.raises(InvalidInput, match="no file"):
        import_home(tmp_path / "none", tmp_path / "there")


def test_a_file_that_was_cut_off_or_changed_is_refused(home, tmp_path):
    back_up_home(home, tmp_path / "file")
    whole = (tmp_path / "file").read_bytes()
    at = whole.index(b"drawn once")
    for number, bad in enumerate(
        (whole[: len(whole) // 2], whole[:at] + b"Drawn" + whole[at + 5 :], b"", b"no archive" * 500)
    ):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ArtifactCorrupt):
            import_home(tmp_path / "bad", tmp_path / f"there-{number}")
        assert not (tmp_path / f"there-{number}" / "ledger.sqlite").exists()
        assert import_home(tmp_path / "file", tmp_path / f"there-{number}") == 4, "nothing is in the way"


@pytest.mark.parametrize("name", ["../outside", "/outside", "jobs/../../outside", "a\\b", "link"])
def test_a_file_from_elsewhere_writes_nothing_outside(tmp_path, name):
    with tarfile.open(tmp_path / "file", "w") as archive:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member, io.BytesIO())
    with pytest.raises(ArtifactCorrupt):
        import_home(tmp_path / "file", tmp_path / "deep" / "there")
    assert not list(tmp_path.rglob("outside"))


def test_a_kill_during_an_import_leaves_no_home_that_draws(home, tmp_path, monkeypatch):
    back_up_home(home, tmp_path / "file")
    there = tmp_path / "there"
    moves = []

    def rename(path, target, real=type(home).rename):
        if path.parent.name == ".import":
            if moves:
                raise KeyboardInterrupt
            moves.append(path.name)
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(home), "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            import_home(tmp_path / "file", there)
    assert moves == ["ledger.sqlite"]
    with pytest.raises(HomeOutdated):
        claim(there)


def test_a_run_claims_before_and_after(home):
    seen = []
    with newest(home, seen.append):
        assert [one.count for one in seen] == [1]
        assert runs_under_way(home) == 1
    assert [one.count for one in seen] == [1, 2]
    assert len({one.home_id for one in seen}) == 1
    assert len({one.nonce for one in seen}) == 2

    def refuse(claim):
        raise HomeOutdated("an older copy")

    with pytest.raises(HomeOutdated), newest(home, refuse):
        raise AssertionError("nothing may be drawn")
    assert runs_under_way(home) == 0


def test_a_recovered_home_has_other_names(home):
    before = claim(home)
    with releases(home) as store:
        identity = store.identity
    with HomeIdentity(home) as opened:
        opened.set_moved(True)
        opened.renew()
    after = claim(home)
    assert after.home_id != before.home_id
    assert after.count == 1
    with releases(home) as store, Ledger(home) as ledger:
        assert store.identity != identity
        assert ledger.entries()[-1]["kind"] == "recovered"
        assert store.get_many([KEY])[KEY].data == b"drawn once"


def test_with_a_passphrase_a_home_in_clear_travels_encrypted(home, tmp_path, monkeypatch):
    monkeypatch.setitem(vault_key._SCRYPT, "n", 1 << 10)
    file, passphrase = tmp_path / "file", "correct horse battery"
    back_up_home(home, file, passphrase)
    assert b"drawn once" not in file.read_bytes()
    assert b"job.json" not in file.read_bytes()
    monkeypatch.setenv(vault_key.PASSPHRASE_VARIABLE, "another passphrase")
    with pytest.raises(HomeLocked, match="does not open"):
        import_home(file, tmp_path / "there")
    monkeypatch.setenv(vault_key.PASSPHRASE_VARIABLE, passphrase)
    assert import_home(file, tmp_path / "there") == 4
    with releases(tmp_path / "there") as store:
        assert store.get_many([KEY])[KEY].data == b"drawn once"
    whole = file.read_bytes()
    for number, damaged in enumerate((whole[:-1], whole[:-30], whole[:200] + b"x" + whole[201:], b"{}\n")):
        file.write_bytes(damaged)
        with pytest.raises((ArtifactCorrupt, HomeLocked)):
            import_home(file, tmp_path / f"not-{number}")
