"""The states of a teaching, its queue, and which jobs may use it."""

from __future__ import annotations

import pytest

from privtune.cloud.catalog import Catalog
from privtune.cloud.corpora import Corpora
from privtune.cloud.jobs.teachings import Teachings
from privtune.shared.errors import (
    CorpusNotFound,
    CutOutOfRange,
    DataInvalid,
    InvalidInput,
    JobConflict,
    JobNotFound,
    ModelNotFound,
    PermissionDenied,
)
from privtune.shared.teaching_spec import TeachingSpec
from tests.support.builders import least_spec

SPEC = TeachingSpec(model="tiny-bert", corpus="texts", cut=1)


@pytest.fixture
def teachings(store, model_folder, tmp_path):
    (tmp_path / "texts.txt").write_text("a\n")
    return Teachings(store, Catalog([str(model_folder)]), Corpora([str(tmp_path / "texts.txt")]), max_active=2)


def test_it_runs_and_succeeds(teachings):
    made = teachings.create("alice", SPEC)
    assert (made.status, made.progress) == ("queued", {})
    claimed = teachings.claim()
    assert claimed is not None
    assert (claimed.id, claimed.status) == (made.id, "running")
    assert teachings.claim() is None
    teachings.progress(made.id, "teaching", 3, 10, 0.5)
    assert teachings.get(made.id).progress["step"] == 3
    teachings.succeed(made.id, "result", {"labels": []})
    done = teachings.get(made.id, "alice")
    assert (done.status, done.result, done.card, done.progress["step"]) == ("succeeded", "result", {"labels": []}, 3)
    with pytest.raises(JobConflict, match="succeeded"):
        teachings.cancel(made.id, "alice")


def test_the_same_request_is_the_same_unfinished_teaching(teachings):
    one, two = teachings.create("alice", SPEC), teachings.create("alice", SPEC)
    assert one.id == two.id
    assert teachings.create("bob", SPEC).id != one.id
    teachings.create("alice", SPEC.model_copy(update={"seed": 1}))
    with pytest.raises(PermissionDenied, match="2 unfinished"):
        teachings.create("alice", SPEC.model_copy(update={"seed": 2}))


def test_a_queued_one_is_cancelled_at_once_and_a_running_one_after_its_step(teachings):
    queued = teachings.create("alice", SPEC)
    assert teachings.cancel(queued.id, "alice").status == "cancelled"
    running = teachings.create("alice", SPEC)
    teachings.claim()
    assert teachings.cancel(running.id, "alice").status == "running"
    assert teachings.cancelling(running.id)
    teachings.stopped(running.id)
    assert teachings.get(running.id).status == "cancelled"


def test_what_a_crash_left_running_waits_again(teachings):
    made = teachings.create("alice", SPEC)
    teachings.claim()
    teachings.recover()
    assert teachings.get(made.id).status == "queued"


def test_what_runs_in_every_crash_is_not_tried_for_ever(teachings):
    made = teachings.create("alice", SPEC)
    for _ in range(2):
        teachings.claim()
        teachings.recover()
        assert teachings.get(made.id).status == "queued"
    teachings.claim()
    teachings.recover()
    assert (teachings.get(made.id).status, teachings.get(made.id).error_code) == ("failed", "INTERNAL")
    assert teachings.claim() is None


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 4096, "max_length": 64}, {"relations": 1.0, "batch_size": 512, "max_length": 64}],
)
def test_a_step_that_would_fill_the_memory_is_refused(store, model_folder, tmp_path, change):
    (tmp_path / "texts.txt").write_text("a\n")
    catalog, corpora = Catalog([str(model_folder)]), Corpora([str(tmp_path / "texts.txt")])
    bounded = Teachings(store, catalog, corpora, max_step_bytes=160 << 20)
    bounded.check(SPEC)
    with pytest.raises(InvalidInput, match=r"--max-memory-mib"):
        bounded.check(SPEC.model_copy(update=change))


def test_a_failure_has_its_reason(teachings):
    made = teachings.create("alice", SPEC)
    teachings.claim()
    teachings.fail(made.id, DataInvalid("corpus texts, line 1: not UTF-8"))
    failed = teachings.get(made.id)
    assert (failed.status, failed.error_code, failed.reason) == (
        "failed",
        "DATA_INVALID",
        "corpus texts, line 1: not UTF-8",
    )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "other"}, ModelNotFound),
        ({"corpus": "other"}, CorpusNotFound),
        ({"cut": 4}, CutOutOfRange),
        ({"cut": 2, "tail": 2}, CutOutOfRange),
        ({"task": "causal-lm"}, InvalidInput),
        ({"max_length": 500}, InvalidInput),
    ],
)
def test_what_makes_no_sense_here_is_refused(teachings, changes, error):
    with pytest.raises(error):
        teachings.create("alice", SPEC.model_copy(update=changes))


def test_pages_are_of_one_owner_newest_first(teachings):
    ids = []
    for seed in range(3):
        ids.append(teachings.create("alice", SPEC.model_copy(update={"seed": seed})).id)
        teachings.cancel(ids[-1], "alice")
    teachings.create("bob", SPEC)
    page = teachings.list("alice", limit=2)
    assert ([one.id for one in page.items], page.has_more) == ([ids[2], ids[1]], True)
    assert [one.id for one in teachings.list("alice", after=ids[1]).items] == [ids[0]]
    with pytest.raises(JobNotFound):
        teachings.get(ids[0], "bob")


def test_a_job_may_use_its_own_owners_finished_blocks_of_its_own_cut(teachings):
    made = teachings.create("alice", SPEC)
    job = least_spec().model_copy(
        update={"model": "tiny-bert", "cut": 1, "tail": 1, "skip": "tuned", "taught": made.id}
    )
    with pytest.raises(JobConflict, match="queued"):
        teachings.check_job("alice", job)
    teachings.claim()
    teachings.succeed(made.id, "result", {})
    teachings.check_job("alice", job)
    with pytest.raises(JobNotFound):
        teachings.check_job("bob", job)
    with pytest.raises(InvalidInput, match="is for cut 1, and this job has cut 2"):
        teachings.check_job("alice", job.model_copy(update={"cut": 2}))


def test_an_operators_result_is_an_owners_teaching(teachings):
    made = teachings.record("alice", SPEC, "result", {"pieces": 3})
    assert teachings.get(made.id, "alice").status == "succeeded"
    assert teachings.claim() is None
