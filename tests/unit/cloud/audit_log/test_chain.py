"""The audit log notices what is changed, removed, inserted or cut off, and forgets by age without becoming broken."""

import time

import pytest
from sqlalchemy import delete, update

from privtune.cloud.audit_log.check import entries, prune, verify
from privtune.cloud.audit_log.record import acting_as, acting_from, record
from privtune.cloud.db.tables import AuditEndRow, AuditRow
from privtune.shared.errors import InvalidInput


@pytest.fixture
def five(store):
    for number in range(5):
        with store.write() as session:
            record(session, "key.created", owner="alice", target=f"key-{number}", scopes=["read"])
    return store


def change(store, *statements):
    with store.write() as session:
        for statement in statements:
            session.execute(statement)


def test_an_untouched_log_is_whole_and_says_who_did_what(five):
    assert verify(five).problem is None
    assert verify(five).count == 5
    first = next(entries(five))
    assert (first.number, first.who, first.action, first.target) == (1, "operator", "key.created", "key-0")
    assert "@" in first.origin
    assert abs(first.at - time.time()) < 5


def test_an_act_that_fails_leaves_no_entry(five):
    def fail():
        with five.write() as session:
            record(session, "key.revoked", owner="alice", target="key-0")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert verify(five).count == 5


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (delete(AuditRow).where(AuditRow.number == 3), "entries 3 to 3 are missing"),
        (delete(AuditRow).where(AuditRow.number == 1), "entries 1 to 1 are missing"),
        (delete(AuditRow).where(AuditRow.number >= 4), "entries after 3 are missing: the newest was 5"),
        (delete(AuditRow), "entries after 0 are missing"),
        (update(AuditRow).where(AuditRow.number == 2).values(owner="bob"), "entry 2 is not as it was written"),
        (update(AuditRow).where(AuditRow.number == 2).values(sha256="0" * 64), "entry 2 is not as it was written"),
        (update(AuditRow).where(AuditRow.number == 5).values(detail={}), "entry 5 is not as it was written"),
    ],
)
def test_what_someone_changes_or_removes_is_noticed(five, statement, problem):
    change(five, statement)
    assert problem in verify(five).problem


def test_a_beginning_that_goes_though_nothing_was_pruned_is_noticed(five):
    third = next(entries(five, after=2))
    moved = update(AuditEndRow).where(AuditEndRow.id == 0).values(number=3, sha256=third.sha256)
    change(five, delete(AuditRow).where(AuditRow.number <= 3), moved)
    assert verify(five).problem == "entries up to 3 are missing, and not for their age"


def test_a_chain_that_was_computed_anew_misses_the_end_that_was_noted(five):
    noted = verify(five).end
    assert verify(five, noted).problem is None
    zero = update(AuditEndRow).values(number=0, sha256="")
    change(five, delete(AuditRow), zero)
    for owner in ("alice", "bob", "carol", "dan", "eve", "frank"):
        with five.write() as session:
            record(session, "limits.set", owner=owner)
    assert verify(five).problem is None
    assert "entry 5 is another than the one that was noted" in verify(five, noted).problem
    with pytest.raises(InvalidInput, match="NUMBER:HASH"):
        verify(five, "yesterday")


def test_a_shorter_chain_misses_the_end_that_was_noted(five):
    noted = verify(five).end
    change(five, delete(AuditRow), update(AuditEndRow).values(number=0, sha256=""))
    assert "5 was noted" in verify(five, noted).problem


def test_age_removes_a_beginning_and_the_rest_stays_whole(five):
    now = int(time.time())
    noted = verify(five).end
    assert prune(five, now - 1000) == 0, "nothing is that old"
    assert prune(five, now + 1000) == 0, "not for a few minutes' age: the log would be about itself"
    assert prune(five, now + 2 * 24 * 3600) == 5
    left = list(entries(five))
    assert [(entry.number, entry.action, entry.target) for entry in left] == [(6, "log.pruned", "5")]
    assert verify(five).problem is None
    assert verify(five, noted).problem is None
    with five.write() as session:
        record(session, "key.revoked", owner="alice")
    assert prune(five, now + 4 * 24 * 3600) == 2
    assert verify(five).problem is None
    assert [entry.number for entry in entries(five)] == [8]


def test_an_actor_is_named_once_its_key_is_known(store):
    import contextvars

    def request():
        acting_from("192.0.2.7")
        contextvars.copy_context().run(acting_as, "key-1", "alice")  # as another thread of the same request does
        with store.write() as session:
            record(session, "key.revoked", owner="alice", target="key-2")

    contextvars.copy_context().run(request)
    only = next(entries(store))
    assert (only.who, only.origin) == ("key-1", "192.0.2.7")


def test_entries_are_read_by_owner_time_and_number(five):
    with five.write() as session:
        record(session, "limits.set", owner="bob")
    assert [entry.owner for entry in entries(five, owner="bob")] == ["bob"]
    assert [entry.number for entry in entries(five, after=2, limit=2)] == [3, 4]
    assert list(entries(five, since=int(time.time()) + 100)) == []
