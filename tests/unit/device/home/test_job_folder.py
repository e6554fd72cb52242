"""A job's files on the device: private, whole or not at all, and damage to them is one clear error."""

import json
from dataclasses import replace

import numpy as np
import pytest

from privtune.device.home.job_folder import JobFolder
from privtune.device.home.paths import holds_job
from privtune.shared.errors import DataInvalid, JobConflict, JobNotFound, StorageFull
from privtune.shared.job_spec import JobSpec
from tests.support.disk import room_for

SPEC = JobSpec(model="m", training_file="device://a")
JOB = "ftjob-1"


def begun(folder, spec=SPEC, *, data="f", terms=(), rules=""):
    """The state of a job whose records were read."""
    state = folder.begin(spec, ("no", "yes"), "/m", terms)
    folder.hold(replace(state, data_fingerprint=data, surrogate_fingerprint=rules))
    return folder.load()


def test_a_state_comes_back_and_is_private(tmp_path):
    folder = JobFolder(tmp_path, JOB)
    assert not folder.exists()
    assert not holds_job(tmp_path, JOB)
    new = folder.begin(SPEC, ("no", "yes"), "/m")
    assert not holds_job(tmp_path, JOB)  # a job whose records can't be used leaves nothing behind
    state = replace(new, data_fingerprint="f")
    folder.hold(state)
    assert folder.exists()
    assert holds_job(tmp_path, JOB)
    assert folder.load() == state
    assert folder.begin(SPEC, ("no", "yes"), "/m") == state
    assert (tmp_path / "jobs" / JOB).stat().st_mode & 0o077 == 0


def test_the_record_order_is_a_secret_of_each_job_and_stable(tmp_path):
    first, second = begun(JobFolder(tmp_path, "a")), begun(JobFolder(tmp_path, "b"))
    assert first.order_secret != second.order_secret
    np.testing.assert_array_equal(first.order(50), JobFolder(tmp_path, "a").load().order(50))
    assert sorted(first.order(50)) == list(range(50))


def test_a_device_has_another_name_in_each_job_and_keeps_it(tmp_path):
    folder = JobFolder(tmp_path, "a")
    assert folder.holder() == ""
    first, second = begun(folder), begun(JobFolder(tmp_path, "b"))
    assert first.holder == folder.holder() == begun(folder).holder
    assert first.holder != second.holder
    assert len(bytes.fromhex(first.holder)) == 16


def test_a_job_resumes_with_the_same_data_and_description_only(tmp_path):
    folder = JobFolder(tmp_path, JOB)
    begun(folder)
    with pytest.raises(JobConflict, match=r"the data differs .* start a new job \(--new\)"):
        begun(folder, data="other")
    with pytest.raises(JobConflict, match="no longer has the description"):
        begun(folder, SPEC.model_copy(update={"cut": 0}))
    assert begun(folder) == folder.load()


def test_a_job_keeps_its_secret_its_terms_and_its_rules_of_surrogates(tmp_path):
    folder = JobFolder(tmp_path, JOB)
    state = begun(folder, terms=("Falke",), rules="now")
    assert len(bytes.fromhex(state.surrogate_secret)) == 32
    assert begun(JobFolder(tmp_path, "b")).surrogate_secret != state.surrogate_secret
    assert begun(folder, terms=("Falke",), rules="now") == state
    with pytest.raises(JobConflict, match=r"your own terms differ .* start a new job \(--new\)"):
        begun(folder, terms=("Falke", "Adler"), rules="now")
    with pytest.raises(JobConflict, match=r"recognisers or tables of surrogates .* start a new job \(--new\)"):
        begun(folder, terms=("Falke",), rules="later")


def test_a_job_of_another_device(tmp_path):
    with pytest.raises(JobNotFound, match="this device holds nothing of job ftjob-1"):
        JobFolder(tmp_path, JOB).load()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"spec": {}}', '{"spec": 1, "label_names": 2}'])
def test_a_damaged_state_is_one_clear_error(tmp_path, content):
    folder = JobFolder(tmp_path, JOB)
    begun(folder)
    (folder.path / "job.json").write_text(content)
    with pytest.raises(DataInvalid, match="restore it from a backup"):
        folder.load()


def test_a_write_that_fails_keeps_what_was_there(tmp_path):
    folder = JobFolder(tmp_path, JOB)
    folder.write_json("report.json", {"a": 1})
    with room_for(100), pytest.raises(StorageFull, match="File too large; free room and run again"):
        folder.write_json("report.json", {"a": "b" * 1000})
    assert json.loads((folder.path / "report.json").read_text()) == {"a": 1}
