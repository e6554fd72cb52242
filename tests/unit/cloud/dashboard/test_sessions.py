"""Sessions are few, end by themselves, and are found by their secret alone."""

import pytest

from privtune.cloud.dashboard.sessions import IDLE_S, LIFE_S, MAX_OF_KEY, MAX_SESSIONS, Sessions


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def facts(key="key-1"):
    return {"id": key, "owner": "alice", "scopes": ["read"]}


def test_a_session_is_found_until_it_is_closed(clock):
    sessions = Sessions(clock)
    secret = sessions.open("pt-secret", facts())
    assert sessions.find(secret).key == "pt-secret"
    assert sessions.find("") is sessions.find(secret + "x") is None
    assert "pt-secret" not in repr(sessions.find(secret))
    sessions.close(secret)
    assert sessions.find(secret) is None


def test_it_ends_when_idle_and_after_a_day_of_use(clock):
    sessions = Sessions(clock)
    idle, used = sessions.open("pt-a", facts()), sessions.open("pt-a", facts())
    while clock.now + IDLE_S < LIFE_S:
        clock.now += IDLE_S
        assert sessions.find(used) is not None
    assert sessions.find(idle) is None
    clock.now = LIFE_S + 1
    assert sessions.find(used) is None
    assert len(sessions) == 0


def test_memory_is_bounded(clock):
    sessions = Sessions(clock)
    mine = [sessions.open("pt-a", facts()) for _ in range(MAX_OF_KEY + 1)]
    assert sessions.find(mine[0]) is None
    assert sessions.find(mine[1]) is not None
    for number in range(2 * MAX_SESSIONS):
        sessions.open("pt-b", facts(f"key-{number}"))
    assert len(sessions) == MAX_SESSIONS
    assert sessions.find(mine[-1]) is None
