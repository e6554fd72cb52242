"""Owners take turns on the compute thread: by the time that they use, however many jobs they have."""

import threading
import time
from collections import Counter

import pytest

from privtune.cloud.compute.turns import Turns

TURN_S = 0.002


@pytest.fixture
def turns():
    made = Turns()
    yield made
    made.close()


class Job:
    """Asks for its next turn as soon as it had one, until it is told to stop."""

    def __init__(self, turns, owner, counts, stop, turn_s=TURN_S):
        self._turns, self._owner, self._counts, self._stop, self._turn_s = turns, owner, counts, stop, turn_s
        self.ask()

    def ask(self, *_):
        if not self._stop.is_set():
            self._turns.submit(self._owner, self._take).add_done_callback(self.ask)

    def _take(self):
        time.sleep(self._turn_s)
        self._counts[self._owner] += 1


def share(turns, jobs, total=200):
    """Turns by owner, of at least `total`. jobs: owner and length of each job's turns."""
    counts, stop, held = Counter(), threading.Event(), threading.Event()
    turns.submit("first", held.wait)  # all have work before anyone has a turn
    for owner, turn_s in jobs:
        Job(turns, owner, counts, stop, turn_s)
    held.set()
    while counts.total() < total:
        time.sleep(TURN_S)
    stop.set()
    return counts


def test_an_owner_with_one_job_gets_half_beside_one_with_twenty(turns):
    counts = share(turns, [("many", TURN_S)] * 20 + [("one", TURN_S)])
    assert 0.4 < counts["one"] / counts.total() < 0.6


def test_long_turns_count_as_long(turns):
    counts = share(turns, [("short", TURN_S), ("long", 5 * TURN_S)])
    assert 3 < counts["short"] / counts["long"] < 7


def test_alone_an_owner_gets_every_turn_and_comes_back_level(turns):
    assert set(share(turns, [("many", TURN_S)] * 3, total=60)) == {"many"}
    counts = share(turns, [("many", TURN_S), ("one", TURN_S)], total=60)
    assert 0.4 < counts["many"] / counts.total() < 0.6, "what it used while alone is not held against it"


def test_results_errors_and_order(turns):
    done = []
    futures = [turns.submit("a", lambda n=n: done.append(n) or n) for n in range(5)]
    assert [future.result(5) for future in futures] == done == list(range(5))
    with pytest.raises(ZeroDivisionError):
        turns.submit("a", lambda: 1 / 0).result(5)


def test_what_waits_is_done_before_the_end():
    turns, held = Turns(), threading.Event()
    futures = [turns.submit("a", held.wait), turns.submit("b", lambda: "done")]
    held.set()
    turns.close()
    assert futures[1].result(0) == "done"
    with pytest.raises(RuntimeError):
        turns.submit("a", lambda: None)


def test_it_tells_how_long_it_has_been_at_its_present_work(turns):
    begun, let_go = threading.Event(), threading.Event()

    def work():
        begun.set()
        let_go.wait(10)
        return 3

    assert turns.busy_s == 0
    done = turns.submit("a", work)
    begun.wait(10)
    time.sleep(0.01)
    assert turns.busy_s >= 0.01
    let_go.set()
    assert done.result(10) == 3
    with pytest.raises(ZeroDivisionError):
        turns.submit("a", lambda: 1 // 0).result(10)
    assert turns.busy_s == 0


class Held:
    """Work that waits while the first turn runs, so that all of it is there when the next one begins."""

    def __init__(self, turns):
        self._turns, self._go, self.done = turns, threading.Event(), []
        self._first = turns.submit("first", self._go.wait)
        self.futures = []

    def add(self, owner, item, key="k", most=3):
        self.futures.append(self._turns.submit_work(owner, item, key, self.work, most))

    def work(self, items):
        self.done.append(list(items))
        time.sleep(TURN_S)

    def run(self):
        self._go.set()
        for future in self.futures:
            if not future.cancelled():
                future.result(5)
        return self.done


def test_work_of_one_key_is_done_together_one_of_each_owner_first(turns):
    held = Held(turns)
    for owner, item in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1")]:
        held.add(owner, item)
    held.add("a", "other", key="another")
    held.add("b", "alone", key=None)
    held.add("c", "alone too", key=None)
    done = held.run()
    assert sorted(done[0]) == ["a1", "b1", "c1"]
    assert sorted(map(sorted, done)) == sorted([["a1", "b1", "c1"], ["a2", "a3"], ["other"], ["alone"], ["alone too"]])


def test_nobody_waits_for_a_partner(turns):
    assert Held(turns).run() == []
    alone = Held(turns)
    alone.add("a", "only", most=64)
    assert alone.run() == [["only"]]


def test_what_was_cancelled_is_left_out_and_an_error_is_everyones(turns):
    held = Held(turns)
    for item in ("a", "b", "c"):
        held.add(item, item)
    held.futures[1].cancel()
    assert sorted(held.run()[0]) == ["a", "c"]
    with pytest.raises(ZeroDivisionError):
        turns.submit_work("a", 0, "k", lambda items: 1 / items[0], 2).result(5)


def test_each_owner_is_charged_its_share(turns):
    """One that rides along with others gets as much as one that comes alone."""
    counts, stop, go = Counter(), threading.Event(), threading.Event()
    turns.submit("first", go.wait)

    def ask(owner, key):
        if not stop.is_set():
            turns.submit_work(owner, owner, key, work, 4).add_done_callback(lambda _: ask(owner, key))

    def work(items):
        time.sleep(TURN_S * len(items))
        counts.update(items)

    for owner, key in (("a", "k"), ("b", "k"), ("alone", None)):
        ask(owner, key)
    go.set()
    while counts.total() < 150:
        time.sleep(TURN_S)
    stop.set()
    assert 0.8 < counts["a"] / counts["alone"] < 1.25
