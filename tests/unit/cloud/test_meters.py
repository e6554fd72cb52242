"""What the cloud counts: by owner within a bound, and errors by a reason of the table."""

import pytest

from privtune.cloud import meters
from privtune.cloud.compute.turns import Turns


def value(name, **labels):
    return meters.REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def no_owners(monkeypatch):
    monkeypatch.setattr(meters, "_owners", set())


def test_owners_over_the_bound_share_one_series(no_owners, monkeypatch):
    monkeypatch.setattr(meters, "MAX_OWNERS", 2)
    labels = [meters.owner_label(owner) for owner in ("alice", "bob", "carol", "", "alice")]
    assert labels == ["alice", "bob", meters.OTHERS, meters.NO_OWNER, "alice"]


def test_turns_count_how_long_they_waited_and_took():
    turns = Turns()
    before = value("privtune_turn_wait_seconds_count", owner="turning")
    for _ in range(3):
        turns.submit("turning", lambda: None)
    turns.close()
    assert turns.waiting() == {}
    assert value("privtune_turn_wait_seconds_count", owner="turning") == before + 3
    assert 0 < value("privtune_turn_seconds_total", owner="turning") < 60
