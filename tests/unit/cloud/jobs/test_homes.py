"""The cloud notices an older copy of a device's home."""

import pytest

from privtune.cloud.jobs import homes
from privtune.cloud.jobs.homes import Homes
from privtune.shared.errors import HomeOutdated, InvalidInput, PermissionDenied

HOME, A, B = "0" * 32, "a" * 32, "b" * 32


@pytest.fixture
def known(store):
    return Homes(store)


def test_counts_grow_and_a_repeated_claim_is_the_same(known):
    for count, nonce in ((1, A), (1, A), (2, B), (7, A), (7, A)):
        known.claim("alice", HOME, count, nonce)


@pytest.mark.parametrize(("count", "nonce"), [(6, A), (7, B), (1, A)])
def test_an_older_copy_is_noticed(known, count, nonce):
    known.claim("alice", HOME, 7, A)
    with pytest.raises(HomeOutdated, match="privtune home recover"):
        known.claim("alice", HOME, count, nonce)
    known.claim("alice", HOME, 8, B)


def test_homes_of_other_owners_and_other_homes_are_apart(known):
    known.claim("alice", HOME, 7, A)
    known.claim("bob", HOME, 1, B)
    known.claim("alice", A, 1, B)


@pytest.mark.parametrize(
    ("home_id", "count", "nonce"), [("", 1, A), (HOME, 0, A), (HOME, 1, "x" * 32), (HOME, 1 << 54, A)]
)
def test_nonsense_is_refused(known, home_id, count, nonce):
    with pytest.raises(InvalidInput):
        known.claim("alice", home_id, count, nonce)


def test_an_owners_homes_are_bounded_and_none_is_forgotten(known, monkeypatch):
    monkeypatch.setattr(homes, "MAX_HOMES", 1)
    known.claim("alice", HOME, 1, A)
    with pytest.raises(PermissionDenied):
        known.claim("alice", A, 1, A)
    known.claim("alice", HOME, 2, A)
    known.claim("bob", HOME, 1, A)
