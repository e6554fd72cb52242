"""The thread that teaches outlives what goes wrong around a teaching."""

from __future__ import annotations

import threading

import pytest

from privtune.cloud.compute.teaching import school
from privtune.shared.errors import StorageFull


class Queue:
    """A queue that fails at first."""

    def __init__(self, error):
        self.errors, self.asked_again = [error], threading.Event()

    def recover(self):
        """Nothing was left."""

    def claim(self):
        """Nothing waits, once the disk has room again."""
        if self.errors:
            raise self.errors.pop()
        self.asked_again.set()


@pytest.mark.parametrize("error", [StorageFull("no room"), ValueError("a row that nobody can read")])
def test_the_queue_is_asked_again_after_a_failure(monkeypatch, error):
    monkeypatch.setattr(school, "_LOOK_S", 0.01)
    queue = Queue(error)
    one = school.School(queue, None)
    one.start()
    try:
        assert queue.asked_again.wait(5)
    finally:
        one.stop(5)
