"""The states of a teaching, its queue, and which jobs may use it."""

from __future__ import annotations

import time

import pytest

from privtune.cloud.catalog import Catalog
from privtune.cloud.corpora import Corpora
from privtune.cloud.jobs import teaching_queue
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teaching_queue import LEASE_S
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


class Packages:
    """Those of every result, until they are tidied away."""

    def __init__(self):
        self.gone, self.tidied = set(), []

    def has(self, result):
        return result not in self.gone

    def tidy(self, result, *, package):
        self.tidied.append((result, package))


def finish(teachings, made, result="result"):
    assert teachings.claim().id == made.id
    teachings.began(made.id, result)
    teachings.succeed(made.id, result, {"pieces": 3}, teachings.sources(made.spec))


def test_what_was_taught_already_is_ready_at_once(teachings, model_folder, tmp_path):
    packages = teachings.packages = Packages()
    first = teachings.create("alice", SPEC)
    finish(teachings, first)
    assert teachings.create("alice", SPEC).id == first.id
    others = teachings.create("bob", SPEC)
    assert (others.id != first.id, others.status, others.result, others.card) == (
        True,
        "succeeded",
        "result",
        {"pieces": 3},
    )
    packages.gone.add("result")
    assert teachings.create("carol", SPEC).status == "queued", "the operator may delete any package"
    packages.gone.clear()
    (tmp_path / "texts.txt").write_text("another text\n")
    assert teachings.create("alice", SPEC).status == "queued"


def test_a_model_that_has_changed_has_no_teaching(teachings, model_folder):
    made = teachings.create("alice", SPEC)
    finish(teachings, made)
    job = least_spec(model="tiny-bert", cut=1, tail=1, skip="tuned", taught=made.id)
    teachings.check_job("alice", job)
    assert teachings.get(made.id).current
    (model_folder / "model.safetensors").write_bytes(b"other weights")
    assert not teachings.get(made.id).current
    with pytest.raises(JobConflict, match="have changed since"):
        teachings.check_job("alice", job)
    again = teachings.create("alice", SPEC)
    assert (again.id != made.id, again.status) == (True, "queued")
    finish(teachings, again)  # the same result, which the hash of the weights names: only the files were others
    assert teachings.get(made.id).current


def test_the_last_teaching_of_a_package_takes_it_along(teachings):
    packages = teachings.packages = Packages()
    mine = teachings.create("alice", SPEC)
    with pytest.raises(JobConflict, match="cancel it first"):
        teachings.delete(mine.id, "alice")
    finish(teachings, mine)
    others = teachings.create("bob", SPEC)
    with pytest.raises(JobNotFound):
        teachings.delete(mine.id, "bob")
    teachings.delete(mine.id, "alice")
    teachings.delete(others.id, "bob")
    assert packages.tidied == [("result", False), ("result", True)]
    with pytest.raises(JobNotFound):
        teachings.get(mine.id)


def test_a_teaching_that_an_unfinished_job_begins_with_stays(teachings, store):
    made = teachings.create("alice", SPEC)
    finish(teachings, made)
    jobs = Jobs(store)
    job = jobs.create("alice", least_spec(model="tiny-bert", cut=1, tail=1, skip="tuned", taught=made.id))
    with pytest.raises(JobConflict, match=f"Job {job.id} begins with"):
        teachings.delete(made.id, "alice")
    jobs.cancel(job.id)
    teachings.delete(made.id, "alice")


def test_what_was_begun_and_is_cancelled_while_it_waits_again_leaves_nothing(teachings):
    packages = teachings.packages = Packages()
    made = teachings.create("alice", SPEC)
    teachings.claim()
    teachings.began(made.id, "result")
    teachings.stopped(made.id)
    assert teachings.cancel(made.id, "alice").status == "cancelled"
    assert packages.tidied == [("result", True)]


def test_an_owner_keeps_a_limited_number(store, model_folder, tmp_path):
    (tmp_path / "texts.txt").write_text("a\n")
    few = Teachings(store, Catalog([str(model_folder)]), Corpora([str(tmp_path / "texts.txt")]), max_kept=2)
    kept = [few.create("alice", SPEC.model_copy(update={"seed": seed})) for seed in range(2)]
    finish(few, kept[0])
    with pytest.raises(PermissionDenied, match=r"keep 2 teachings.*privtune teachings delete"):
        few.create("alice", SPEC.model_copy(update={"seed": 2}))
    few.create("bob", SPEC.model_copy(update={"seed": 2}))
    few.delete(kept[0].id, "alice")
    few.create("alice", SPEC.model_copy(update={"seed": 2}))


def test_it_runs_and_succeeds(teachings):
    made = teachings.create("alice", SPEC)
    assert (made.status, made.progress) == ("queued", {})
    claimed = teachings.claim()
    assert claimed is not None
    assert (claimed.id, claimed.status) == (made.id, "running")
    assert teachings.claim() is None
    teachings.progress(made.id, "teaching", 3, 10, 0.5)
    assert teachings.get(made.id).progress["step"] == 3
    teachings.succeed(made.id, "result", {"labels": []}, teachings.sources(SPEC))
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


def test_a_cloud_on_the_same_database_takes_up_its_own_only_and_learns_of_the_owners_wish(teachings, another):
    there = Teachings(another, teachings.catalog, teachings.corpora, place="b" * 32)
    made = teachings.create("alice", SPEC)
    teachings.claim()
    there.recover()
    assert there.get(made.id).status == "running", "the other one works on it"
    assert there.claim() is None
    assert not teachings.cancelling(made.id)
    there.cancel(made.id, "alice")
    deadline = time.monotonic() + 10
    while not teachings.cancelling(made.id) and time.monotonic() < deadline:
        time.sleep(0.05)
    teachings.stopped(made.id)
    assert there.get(made.id).status == "cancelled"


def test_what_a_cloud_that_never_came_back_worked_on_is_taken_up_by_another(teachings, another, monkeypatch):
    there = Teachings(another, teachings.catalog, teachings.corpora, place="b" * 32)
    made = teachings.create("alice", SPEC)
    teachings.claim()
    there.reap()
    assert there.claim() is None, "it may be alive"
    clock = time.time()
    monkeypatch.setattr(teaching_queue, "now", lambda: int(clock + LEASE_S + 1))
    teachings.renew()
    there.reap()
    assert there.claim() is None, "it said that it is alive"
    clock += LEASE_S + 1
    there.renew()  # has nothing of its own
    there.reap()
    assert there.claim().id == made.id
    assert teachings.cancelling(made.id), "the first one stops when it is back"
    for late in (
        lambda: teachings.stopped(made.id),
        lambda: teachings.fail(made.id, DataInvalid("no")),
        lambda: teachings.succeed(made.id, "result", {}, teachings.sources(SPEC)),
    ):
        with pytest.raises(JobConflict, match="was taken from this cloud"):
            late()
    there.succeed(made.id, "result", {}, there.sources(SPEC))
    assert teachings.get(made.id).status == "succeeded"


def test_a_teaching_that_is_cancelled_while_its_cloud_is_gone_ends(teachings, another, monkeypatch):
    there = Teachings(another, teachings.catalog, teachings.corpora, place="b" * 32)
    made = teachings.create("alice", SPEC)
    teachings.claim()
    there.cancel(made.id, "alice")
    monkeypatch.setattr(teaching_queue, "LEASE_S", -1)
    there.reap()
    assert there.get(made.id).status == "cancelled"
    there.delete(made.id, "alice")
    with pytest.raises(JobNotFound):
        teachings.stopped(made.id)


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
    finish(teachings, made)
    teachings.check_job("alice", job)
    with pytest.raises(JobNotFound):
        teachings.check_job("bob", job)
    with pytest.raises(InvalidInput, match="is for cut 1, and this job has cut 2"):
        teachings.check_job("alice", job.model_copy(update={"cut": 2}))


def test_an_operators_result_is_an_owners_teaching(teachings):
    made = teachings.record("alice", SPEC, "result", {"pieces": 3}, teachings.sources(SPEC))
    assert teachings.get(made.id, "alice").status == "succeeded"
    assert teachings.claim() is None
    assert teachings.record("alice", SPEC, "result", {"pieces": 3}, teachings.sources(SPEC)).id == made.id
