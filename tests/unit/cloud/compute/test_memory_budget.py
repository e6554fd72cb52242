"""The memory of all jobs is shared by owners: who holds more than an equal share gives way to who is within it."""

import gc

import pytest

from privtune.cloud.compute.memory_budget import KEPT_S, MemoryBudget
from privtune.shared.errors import CloudOutOfMemory, CloudUnreachable


class Holder:
    """Something that a session holds."""


class Shelf:
    """A cache of entries of ten bytes."""

    def __init__(self, budget, size):
        self.budget, self.size = budget, size
        budget.hold(self, size)

    def shed(self):
        self.size -= 10
        self.budget.hold(self, self.size)


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def budget(clock):
    made = MemoryBudget(100, clock=lambda: clock[0])
    made.gave_up = []
    made.gives_up = lambda *what: made.gave_up.append(what)
    return made


def test_an_owner_may_take_everything_while_nobody_else_asks(budget):
    budget.of("alice").hold(one := Holder(), 100)
    with pytest.raises(CloudUnreachable, match="in use"):
        budget.of("alice").hold(Holder(), 1)
    assert budget.held_by(one) == 100
    assert not budget.gave_up


def test_who_holds_most_gives_up_what_an_owner_within_its_share_needs_and_gets_it_back_last(budget, clock):
    alice, bob = budget.of("alice"), budget.of("bob")
    mine, theirs = [Holder() for _ in range(4)], Holder()
    for one in mine:
        alice.hold(one, 25)
    for _ in range(3):
        with pytest.raises(CloudUnreachable):
            bob.hold(theirs, 30)
    assert budget.gave_up == [("alice", 30)], "once, however often bob asks"
    del one, mine[2:]
    with pytest.raises(CloudUnreachable):
        alice.hold(Holder(), 25)  # it would fit, but bob was told to come back
    assert alice.fits(mine[0], 25)
    bob.hold(theirs, 30)
    alice.hold(Holder(), 20)


def test_what_has_ended_and_refers_to_itself_is_not_counted(budget):
    gc.disable()
    try:
        ended = Holder()
        ended.myself = ended
        budget.of("alice").hold(ended, 90)
        del ended
        budget.of("bob").hold(Holder(), 40)
    finally:
        gc.enable()
    assert not budget.gave_up


def test_an_owner_who_never_comes_back_keeps_nothing_from_others_for_long(budget, clock):
    alice = budget.of("alice")
    alice.hold(mine := Holder(), 90)
    with pytest.raises(CloudUnreachable):
        budget.of("bob").hold(Holder(), 40)
    assert not alice.fits(mine, 95)
    clock[0] += KEPT_S
    assert alice.fits(mine, 95)


def test_nobody_gives_up_for_an_owner_who_wants_more_than_its_share(budget):
    budget.of("alice").hold(kept := Holder(), 90)
    with pytest.raises(CloudUnreachable):
        budget.of("bob").hold(Holder(), 60)
    with pytest.raises(CloudOutOfMemory):
        budget.of("bob").hold(Holder(), 101)
    assert not budget.gave_up
    assert budget.held_by(kept) == 90


def test_caches_of_who_holds_most_give_way_first_and_those_within_a_share_to_nobody_beyond_it(budget):
    alice, bob, carol = (budget.of(owner) for owner in ("alice", "bob", "carol"))
    large, small = Shelf(alice, 60), Shelf(bob, 30)
    carol.hold(Holder(), 0)
    carol.hold(theirs := Holder(), 33)
    assert (large.size, small.size) == (30, 30)
    alice.hold(grown := Holder(), 7)
    assert (large.size, small.size) == (30, 30)
    with pytest.raises(CloudUnreachable):
        carol.hold(theirs, 80)
    assert small.size == 30
    assert budget.held_by(grown) == 7
