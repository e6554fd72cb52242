"""The ledger: composition over jobs, refusals, crashes, two processes, and a chain that reveals any change."""

import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap

import pytest

from privtune.device.account.ledger import Ledger, outcomes, spent
from privtune.device.home.policy import Budget, Policy, budget_of
from privtune.shared.errors import ArtifactCorrupt, PolicyRefused


def facts(job="job-1", law="law-1", records=10, epsilon=2.0, **more):
    base = {"source": "/data/a.csv", "part": "train", "delta": 0.0, "rows": 5 * records, "bytes": 100}
    return {"job": job, "law": law, "records": records, "epsilon": epsilon} | base | more


def run(ledger, budget=None, *, drawn=None, **changes):
    """One run: admitted, then settled."""
    asked = facts(**changes)
    admission = ledger.admit(asked, budget or Budget(noises=None))
    done = asked["records"] if drawn is None else drawn
    ledger.settle(admission, {"records": done, "epsilon": asked["epsilon"], "delta": asked["delta"]})


def cost(ledger, source="/data/a.csv"):
    return spent(ledger.entries(), source)


def test_only_the_owner_can_read_it_and_it_is_still_there_after_reopening(tmp_path):
    ledger = Ledger(tmp_path)
    run(ledger)
    head = ledger.head
    ledger.close()
    again = Ledger(tmp_path)
    assert stat.S_IMODE(again.path.stat().st_mode) == 0o600
    assert [entry["kind"] for entry in again.entries()] == ["admitted", "released"]
    assert again.head == head
    assert again.holds(head)
    assert not again.holds("0" * 64)


def test_slopes_of_all_jobs_together_keep_to_what_one_may_have(tmp_path):
    """Each job draws its own, so a cloud that asks for one job after another would average the noise away."""
    ledger, budget = Ledger(tmp_path), budget_of(Policy(max_label_epsilon=2), another_noise=False)
    first = {"part": "slopes", "law": "slopes-1", "epsilon": 1.5}
    run(ledger, budget, **first)
    run(ledger, budget, **first)  # the same job goes on
    with pytest.raises(PolicyRefused, match="cost a record 3 nats of the 2 allowed"):
        run(ledger, budget, **first | {"job": "job-2", "law": "slopes-2"})
    run(ledger, Budget(), **first | {"job": "job-2", "law": "slopes-2"})
    assert cost(ledger).slope_nats == 3.0


def test_other_laws_of_noise_add_up_and_the_same_law_costs_nothing_more(tmp_path):
    ledger = Ledger(tmp_path)
    run(ledger, epsilon=2.0)
    run(ledger, job="job-2", records=0, epsilon=0.0)  # every record was in the store already
    assert (cost(ledger).nats, cost(ledger).jobs, cost(ledger).releases) == (2.0, 1, 10)
    run(ledger, job="job-3", records=5, epsilon=3.0)  # five more records, one of them longer, under the same law
    assert cost(ledger).nats == 3.0, "no record has had two draws, so the costliest record counts"
    run(ledger, job="job-4", law="law-2", epsilon=1.5, delta=1e-5)
    assert cost(ledger).nats == 4.5
    assert cost(ledger).delta == 1e-5
    assert cost(ledger, "/data/b.csv").releases == 0
    run(ledger, job="job-5", law="law-3", epsilon=None)
    assert cost(ledger).nats is None, "a job without a bound leaves no bound"


def test_labels_cost_the_largest_epsilon_of_a_store_and_add_up_over_stores(tmp_path):
    ledger = Ledger(tmp_path)
    assert cost(ledger).label_nats == 0
    for job, store, epsilon in (
        ("job-1", "one", 2.0),
        ("job-2", "one", 3.0),
        ("job-3", "one", 1.0),
        ("job-4", "two", 0.5),
    ):
        run(ledger, job=job, label_epsilon=epsilon)
        run(ledger, job=job, law=store, part="labels", epsilon=epsilon)
    assert cost(ledger).label_nats == 3.5
    assert cost(ledger).releases == 40, "labels are no releases"
    run(ledger, job="job-5", law="one", part="labels", epsilon=None)
    assert cost(ledger).label_nats is None, "a fixed seed"
    assert cost(ledger, "/data/b.csv").label_nats == 0
    run(ledger, source="/data/b.csv")
    assert cost(ledger, "/data/b.csv").label_nats is None, "gradients reveal the labels"


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        ({"nats_per_record": 3.0}, "up to 4 nats"),
        ({"releases": 15}, r"may draw 10 new releases \(5 left\)"),
        ({"jobs": 1}, "one more"),
        ({"noises": 1}, "another noise distribution, and 1 may be used"),
    ],
)
def test_a_spent_budget_stops_the_next_job_and_is_entered(tmp_path, budget, why):
    ledger = Ledger(tmp_path)
    budget = Budget.model_validate({"noises": None} | budget)
    run(ledger, budget)
    with pytest.raises(PolicyRefused, match=why):
        run(ledger, budget, job="job-2", law="law-2")
    assert ledger.entries()[-1]["kind"] == "refused"
    assert cost(ledger).releases == 10, "a refused job has released nothing"
    run(ledger, budget, job="job-2", law="law-2", records=0)  # sending the same again is free
    run(ledger, budget, job="job-2", law="law-2", source="/data/b.csv")  # another data set


def test_another_noise_needs_the_owners_word_and_the_same_one_does_not(tmp_path):
    ledger, one = Ledger(tmp_path), Budget()
    run(ledger, one)
    run(ledger, one, job="job-2")  # new records under the same noise
    for part in ("train", "validation", "predict"):
        with pytest.raises(PolicyRefused, match="--another-noise"):
            run(ledger, one, job="job-3", law="law-2", part=part)
    run(ledger, Policy.model_validate({"budget": {"noises": 2}}).budget, job="job-3", law="law-2")
    assert cost(ledger).noises == 2
    run(ledger, one, job="job-3", law="law-2")  # it was allowed, and goes on
    run(ledger, Policy.model_validate({"budget": {"noises": None}}).budget, job="job-5", law="law-3")
    assert cost(ledger).noises == 3


def test_texts_without_a_file_are_told_apart(tmp_path):
    """Many jobs predict, each under its own noise; what counts is how often one text was drawn."""
    ledger, one = Ledger(tmp_path), Budget()
    run(ledger, one, source="predictions", part="predict", noises=1)
    run(ledger, one, source="predictions", part="predict", noises=1, law="law-2")
    with pytest.raises(PolicyRefused, match="another noise distribution, and 1 may be used"):
        run(ledger, one, source="predictions", part="predict", noises=2, law="law-2")
    run(ledger, Budget(noises=2), source="predictions", part="predict", noises=2, law="law-2")
    assert cost(ledger, "predictions").noises == 2
    with pytest.raises(PolicyRefused):
        run(ledger, one, source="predictions", part="predict", noises=2, law="law-2")


def test_a_budget_in_nats_refuses_noise_without_a_bound(tmp_path):
    with pytest.raises(PolicyRefused, match="no such bound"):
        run(Ledger(tmp_path), Budget(nats_per_record=1e9), epsilon=None)


def test_a_killed_run_counts_in_full_until_the_next_one_finds_what_it_drew(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.admit(facts(records=10), Budget())
    assert cost(ledger).releases == 10
    assert outcomes(ledger.entries())[0]["open"]
    ledger.admit(facts(records=4), Budget(releases=10))  # six are in the store now
    assert cost(ledger).releases == 10
    assert cost(ledger).jobs == 1
    assert cost(ledger).nats == 2.0


def test_a_deleted_store_is_a_new_law_and_counts_again(tmp_path):
    ledger = Ledger(tmp_path)
    run(ledger)
    run(ledger, law="law-1-with-a-new-store")
    assert cost(ledger).nats == 4.0
    assert cost(ledger).releases == 20


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET body = replace(body, '2.0', '1.0') WHERE number = 1",
        "DELETE FROM entries WHERE number = 2",
        "UPDATE entries SET chain = (SELECT chain FROM entries WHERE number = 1) WHERE number = 2",
    ],
)
def test_a_change_breaks_the_chain(tmp_path, change):
    ledger = Ledger(tmp_path)
    run(ledger)
    run(ledger, job="job-2")
    with sqlite3.connect(ledger.path) as db:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(change)
        db.execute("DROP TRIGGER no_update")
        db.execute("DROP TRIGGER no_delete")
        db.execute(change)
    with pytest.raises(ArtifactCorrupt, match="chain breaks at entry"):
        ledger.entries()
    with pytest.raises(ArtifactCorrupt):
        run(ledger, job="job-3")


WRITER = """
    import sys
    from pathlib import Path
    from privtune.device.account.ledger import Ledger
    ledger, number = Ledger(Path(sys.argv[1])), 0
    while True:
        ledger.note("test", {"number": number})
        print(number, flush=True)
        number += 1
"""


def test_a_killed_writer_loses_no_entry_that_was_acknowledged(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(30):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = 30 + len(process.stdout.read().splitlines())
    process.wait()
    entries = Ledger(tmp_path).entries()
    assert [entry["number"] for entry in entries] == list(range(len(entries)))
    assert acknowledged <= len(entries) <= acknowledged + 1


def _admit_many(home, job):
    ledger = Ledger(home)
    for number in range(10):
        try:
            ledger.admit(facts(job=job, law=f"{job}-{number}", records=1), Budget(releases=15, noises=None))
        except PolicyRefused:
            continue


def test_two_processes_together_stay_within_the_budget(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_admit_many, args=(tmp_path, f"job-{number}")) for number in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert cost(Ledger(tmp_path)).releases == 15
    assert sum(entry["kind"] == "refused" for entry in Ledger(tmp_path).entries()) == 5
