"""An owner's pace: bursts pass, a loop waits, others are not concerned."""

import pytest

from privtune.cloud.api.pace import Pace
from privtune.shared.errors import RateLimited


def test_a_burst_passes_and_a_loop_waits():
    now = [0.0]
    pace = Pace(60, lambda: now[0])
    for _ in range(60):
        pace.check("alice")
    for _ in range(3):
        with pytest.raises(RateLimited, match="try again in 1 s") as refused:
            pace.check("alice")
        assert refused.value.retry_after_s == 1
    pace.check("bob")
    now[0] = 1.0
    pace.check("alice")
    with pytest.raises(RateLimited):
        pace.check("alice")
    now[0] = 1000.0
    for _ in range(60):
        pace.check("alice")


def test_the_wait_that_is_told_is_enough():
    now = [0.0]
    pace = Pace(7, lambda: now[0])
    for _ in range(7):
        pace.check("alice")
    with pytest.raises(RateLimited) as refused:
        pace.check("alice")
    now[0] += refused.value.retry_after_s
    pace.check("alice")
