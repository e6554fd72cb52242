"""The device's own folder: whole or not at all, private, one process a job, and damage told in one line."""

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from privtune.device.data.records import Columns
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder
from privtune.device.home.paths import RunRequest, check_job_id, default_home, holds_job, job_lock, unfinished
from privtune.shared.errors import DataInvalid, InvalidInput, JobConflict, JobNotFound, StorageFull
from privtune.shared.job_spec import JobSpec

SPEC = JobSpec(model="m", training_file="device://a")
JOB = "ftjob-1"


def asked(**changes):
    train = DataSource(path="/data/a.csv", columns=Columns(text="body"), limit=9, seed=3)
    train, held_out = train.with_holdout(0.2)
    request = RunRequest(cloud="https://c", spec=SPEC, train=train, validation=held_out, local_model="/m")
    return replace(request, **changes)


# ---- what was asked for


def test_a_request_comes_back_as_it_was(tmp_path):
    for request in (asked(), asked(validation=None, local_model=None)):
        request.save(tmp_path, JOB)
        assert RunRequest.load(tmp_path, JOB) == request
    assert RunRequest.load(tmp_path, "ftjob-other") is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"spec": {}}', '{"spec": null, "train": 1}'])
def test_a_damaged_request_says_what_to_do_and_stops_no_new_job(tmp_path, content):
    asked().save(tmp_path, JOB)
    (tmp_path / "jobs" / JOB / "request.json").write_text(content)
    with pytest.raises(DataInvalid, match="--new"):
        RunRequest.load(tmp_path, JOB)
    assert unfinished(tmp_path, asked()) == []


def test_the_same_work_is_found_again_until_it_is_done(tmp_path):
    assert unfinished(tmp_path, asked()) == []
    asked().save(tmp_path, "ftjob-old")
    time.sleep(0.01)
    renamed = SPEC.model_copy(update={"training_file": "device://another-name"})
    asked(spec=renamed).save(tmp_path, "ftjob-new")
    asked(spec=SPEC.model_copy(update={"cut": 2})).save(tmp_path, "ftjob-different")
    asked(cloud="https://elsewhere").save(tmp_path, "ftjob-elsewhere")
    assert unfinished(tmp_path, asked()) == ["ftjob-new", "ftjob-old"]
    folder = JobFolder(tmp_path, "ftjob-new")
    state = folder.begin(renamed, ("a", "b"), "f", None)
    assert unfinished(tmp_path, asked()) == ["ftjob-new", "ftjob-old"]
    folder.save(replace(state, final_step=10))
    assert unfinished(tmp_path, asked()) == ["ftjob-old"]


# ---- the job's state


def test_a_state_comes_back_and_is_private(tmp_path):
    folder = JobFolder(tmp_path, JOB)
    assert not folder.exists()
    assert not holds_job(tmp_path, JOB)
    state = folder.begin(SPEC, ("no", "yes"), "fingerprint", "/m")
    assert folder.exists()
    assert holds_job(tmp_path, JOB)
    assert folder.load() == state
    assert folder.begin(SPEC, ("no", "yes"), "fingerprint", "/m") == state
    assert (tmp_path / "jobs" / JOB).stat().st_mode & 0o077 == 0


def test_the_record_order_is_a_secret_of_each_job_and_stable(tmp_path):
    first = JobFolder(tmp_path, "a").begin(SPEC, (), "f", None)
    second = JobFolder(tmp_path, "b").begin(SPEC, (), "f", None)
    assert first.order_secret != second.order_secret
    np.testing.assert_array_equal(first.order(50), JobFolder(tmp_path, "a").load().order(50))
    assert sorted(first.order(50)) == list(range(50))


def test_a_job_goes_on_with_the_same_data_and_description_only(tmp_path):
    folder = JobFolder(tmp_path, JOB)
    folder.begin(SPEC, (), "f", None)
    with pytest.raises(JobConflict, match=r"the data differs .* start a new job \(--new\)"):
        folder.begin(SPEC, (), "other", None)
    with pytest.raises(JobConflict, match="another description"):
        folder.begin(SPEC.model_copy(update={"cut": 0}), (), "f", None)


def test_a_job_of_another_device(tmp_path):
    with pytest.raises(JobNotFound, match="this device holds nothing of job ftjob-1"):
        JobFolder(tmp_path, JOB).load()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"spec": {}}', '{"spec": 1, "label_names": 2}'])
def test_a_damaged_state_is_told(tmp_path, content):
    folder = JobFolder(tmp_path, JOB)
    folder.begin(SPEC, (), "f", None)
    (folder.path / "job.json").write_text(content)
    with pytest.raises(DataInvalid, match="restore it from a backup"):
        folder.load()


def test_a_write_that_fails_keeps_what_was_there(tmp_path):
    folder = JobFolder(tmp_path, JOB)
    folder.write_json("report.json", {"a": 1})
    (folder.path / ".report.json.part").mkdir()
    with pytest.raises(StorageFull, match="free room and run again"):
        folder.write_json("report.json", {"a": 2})
    assert json.loads((folder.path / "report.json").read_text()) == {"a": 1}


def test_a_home_that_is_a_file(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(StorageFull, match="can't be written"):
        asked().save(tmp_path / "home", JOB)
    with pytest.raises(StorageFull, match="--home"), job_lock(tmp_path / "home", JOB):
        pass


# ---- names and locks


@pytest.mark.parametrize("job_id", ["", ".", "..", "a/b", "../x", "-rf", "a b", "a\x00", "ü", "x" * 129, "a\n"])
def test_an_id_that_is_none_names_no_folder(tmp_path, job_id):
    with pytest.raises(InvalidInput, match="is not a job id"):
        check_job_id(job_id)
    for action in (holds_job, RunRequest.load):
        with pytest.raises(InvalidInput):
            action(tmp_path, job_id)


def test_the_home_follows_the_environment(monkeypatch):
    monkeypatch.setenv("PRIVTUNE_HOME", "~/elsewhere")
    assert default_home() == Path.home() / "elsewhere"
    monkeypatch.delenv("PRIVTUNE_HOME")
    assert default_home() == Path.home() / ".privtune"


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
