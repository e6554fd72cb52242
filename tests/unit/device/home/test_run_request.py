"""What an owner asked for is found again, until it is done, and damage to it stops no new job."""

import time
from dataclasses import replace

import pytest

from privtune.device.data.records import Columns
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder
from privtune.device.home.run_request import RunRequest, unfinished
from privtune.shared.errors import DataInvalid, InvalidInput, StorageFull
from privtune.shared.job_spec import JobSpec

SPEC = JobSpec(model="m", training_file="device://a")
JOB = "ftjob-1"


def asked(**changes):
    train = DataSource(path="/data/a.csv", columns=Columns(text="body"), limit=9, seed=3, own_terms="/data/terms.txt")
    train, held_out = train.with_holdout(0.2)
    request = RunRequest(cloud="https://c", spec=SPEC, train=train, validation=held_out, local_model="/m")
    return replace(request, **changes)


def test_a_request_comes_back_as_it_was(tmp_path):
    for request in (asked(), asked(validation=None, local_model=None, another_noise=True)):
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
    state = folder.begin(renamed, ("a", "b"), None)
    folder.hold(state)
    assert unfinished(tmp_path, asked()) == ["ftjob-new", "ftjob-old"]
    folder.save(replace(state, final_step=10))
    assert unfinished(tmp_path, asked()) == ["ftjob-old"]
    assert unfinished(tmp_path, asked(another_noise=True)) == ["ftjob-old"]  # what is allowed is not the work


def test_a_home_that_is_a_file(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(StorageFull, match="can't be written"):
        asked().save(tmp_path / "home", JOB)


def test_an_id_that_is_none_names_no_folder(tmp_path):
    with pytest.raises(InvalidInput, match="is not a job id"):
        RunRequest.load(tmp_path, "../x")
    with pytest.raises(InvalidInput, match="is not a job id"):
        asked().save(tmp_path, "../x")
