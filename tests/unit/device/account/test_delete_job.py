"""Deleting a job on its device: its folder goes, what left stays in the ledger, and nothing is drawn twice."""

import contextlib
import hashlib

import pytest

from privtune.device.account.delete_job import Amount, delete_here, released_by
from privtune.device.account.ledger import Ledger
from privtune.device.account.run_account import TRANSCRIPT, _lost
from privtune.device.account.transcript import Transcript
from privtune.device.home.job_folder import JobFolder
from privtune.device.home.job_lock import job_lock
from privtune.device.release.record_keys import RecordKey
from privtune.device.release.release_store import EncodedRelease, ReleaseStore
from privtune.shared.errors import JobConflict
from tests.support.builders import least_spec

SCOPE = "a" * 64


def key(number):
    return RecordKey(0, hashlib.sha256(bytes([number])).digest()[:16])


def store(home):
    return contextlib.closing(ReleaseStore(home / "releases.sqlite", SCOPE, 1 << 20))


def make_job(home, job_id, numbers, mechanism="dchi"):
    """A job of these records, as a run leaves it."""
    folder = JobFolder(home, job_id)
    folder.save(folder.begin(least_spec(mechanism={"name": mechanism}), (), None))
    (folder.checkpoints / "step-1").mkdir(parents=True)
    (folder.checkpoints / "step-1" / "head").write_bytes(b"12345")
    transcript = Transcript(folder.path / TRANSCRIPT, job_id)
    transcript.records(SCOPE, [key(number).packed() for number in numbers])
    transcript.close()
    with store(home) as opened, Ledger(home) as ledger:
        opened.put_many({key(number): EncodedRelease(2, b"secret" + bytes([number])) for number in numbers})
        place = {"store": opened.identity, "scope": SCOPE, "store_records": opened.size}
        ledger.note("released", {"job": job_id, "admission": "x", **place})


def test_the_folder_goes_and_releases_stay_for_later_jobs(tmp_path):
    make_job(tmp_path, "one", [1, 2])
    done = delete_here(tmp_path, "one")
    assert not JobFolder(tmp_path, "one").path.exists()
    assert done.went["checkpoints"] == Amount(1, 5)
    assert set(done.went) == {"checkpoints", "transcript", "settings and secrets"}
    kept, entries = (next(what for what in done.stays if what.startswith(kind)) for kind in ("releases", "ledger"))
    assert (kept, entries) == ("releases (2, 14 bytes)", "ledger entries (2)")
    with store(tmp_path) as opened:
        assert opened.get_many([key(1)])[key(1)].data == b"secret\x01"


def test_releases_that_nothing_names_any_more_stay_and_it_is_said(tmp_path):
    make_job(tmp_path, "one", [1])
    assert "first deletion" in " ".join(delete_here(tmp_path, "one").stays.values())
    again = delete_here(tmp_path, "one", releases=True)
    assert "releases" not in again.went
    assert "the list of those" in again.stays["releases"]


def test_it_is_repeatable_and_leaves_other_jobs_alone(tmp_path):
    make_job(tmp_path, "one", [1])
    make_job(tmp_path, "two", [1])
    delete_here(tmp_path, "one")
    assert delete_here(tmp_path, "one").went == {}
    assert not JobFolder(tmp_path, "one").path.exists()
    assert JobFolder(tmp_path, "two").exists()


def test_deleted_releases_are_overwritten_and_never_drawn_again(tmp_path):
    make_job(tmp_path, "one", [1, 2, 3])
    make_job(tmp_path, "two", [3])
    done = delete_here(tmp_path, "one", releases=True)
    assert done.went["releases"] == Amount(2, 14)
    with store(tmp_path) as opened, Ledger(tmp_path) as ledger:
        for number in (1, 2):
            with pytest.raises(JobConflict, match="never drawn again"):
                opened.get_many([key(number)])
            with pytest.raises(JobConflict):
                opened.put_many({key(number): EncodedRelease(2, b"another draw")})
        assert opened.get_many([key(3)])[key(3)].data == b"secret\x03", "the other job has it"
        assert _lost(ledger, opened) == 0, "a deletion is no older copy"
    here = b"".join(path.read_bytes() for path in tmp_path.glob("releases.sqlite*"))
    assert b"secret\x01" not in here
    assert b"secret\x03" in here


def test_releases_without_randomness_may_be_made_again(tmp_path):
    make_job(tmp_path, "one", [1], mechanism="none")
    delete_here(tmp_path, "one", releases=True)
    with store(tmp_path) as opened, Ledger(tmp_path) as ledger:
        assert opened.get_many([key(1)]) == {}
        assert _lost(ledger, opened) == 0, "a deletion is no older copy"


def test_an_older_copy_is_still_noticed_after_a_deletion(tmp_path):
    make_job(tmp_path, "one", [1], mechanism="none")
    delete_here(tmp_path, "one", releases=True)
    make_job(tmp_path, "two", [1, 2], mechanism="none")
    with store(tmp_path) as opened, Ledger(tmp_path) as ledger:
        opened.delete([key(1)], forget=True)  # behind the ledger's back
        assert _lost(ledger, opened) == 1


def test_a_job_in_work_is_refused(tmp_path):
    make_job(tmp_path, "one", [1])
    with job_lock(tmp_path, "one"), pytest.raises(JobConflict, match="Another process"):
        delete_here(tmp_path, "one")
    assert released_by(JobFolder(tmp_path, "one").path) == {SCOPE: {key(1)}}


def test_a_kill_in_the_middle_is_completed_by_the_next_run(tmp_path, monkeypatch):
    make_job(tmp_path, "one", [1])

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("privtune.shared.files.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            delete_here(tmp_path, "one")
    assert not JobFolder(tmp_path, "one").path.exists(), "nobody finds a part of it"
    assert list((tmp_path / "jobs").iterdir()) != []
    with job_lock(tmp_path, "two"):
        assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["two"]
