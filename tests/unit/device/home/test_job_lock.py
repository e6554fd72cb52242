"""One process at a time works on a job of this device."""

import errno
import fcntl
import multiprocessing

import pytest

from privtune.device.home.job_lock import job_lock
from privtune.shared.errors import JobConflict, StorageFull

JOB = "ftjob-1"


def hold(home, ready, let_go):
    with job_lock(home, JOB):
        ready.set()
        let_go.wait(30)


def test_one_process_works_on_a_job(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, let_go = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold, args=(tmp_path, ready, let_go))
    process.start()
    assert ready.wait(30)
    with pytest.raises(JobConflict, match="Another process on this machine"), job_lock(tmp_path, JOB):
        pass
    with job_lock(tmp_path, "ftjob-2"):
        pass
    process.kill()  # a lock dies with its process
    process.join()
    with job_lock(tmp_path, JOB):
        pass


def test_a_home_that_can_not_be_locked_is_no_other_process(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("")
    with pytest.raises(StorageFull, match="--home"), job_lock(tmp_path / "home", JOB):
        pass

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageFull, match="can't be locked: its file system has no locks"), job_lock(tmp_path, JOB):
        pass
