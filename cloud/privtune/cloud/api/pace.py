"""How often an owner may do what writes to the database: bursts are free, a loop without end is slowed down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from privtune.cloud.limits import Buckets
from privtune.shared.errors import RateLimited


class Pace:
    """At most `per_minute` calls of an owner at once, and as many again every minute. Thread-safe; in memory."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._calls = per_minute, Buckets(clock)

    def check(self, owner: str) -> None:
        """Count a call. Raises `RateLimited` for one too many, which does not count."""
        wait_s = math.ceil(self._calls.take(owner, 1, self._most, unless_over=True))
        if wait_s:
            raise RateLimited(
                f"More than {self._most} jobs were created, paused or resumed within a minute, the most that this "
                f"cloud allows an owner; try again in {wait_s} s.",
                retry_after_s=wait_s,
            )
