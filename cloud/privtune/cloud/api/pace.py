"""How often an owner may do what writes to the database: bursts are free, a loop without end is slowed down."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from privtune.shared.errors import RateLimited


class Pace:
    """At most `per_minute` calls of an owner at once, and as many again every minute. Thread-safe; in memory."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = per_minute, clock
        self._used: dict[str, tuple[float, float]] = {}  # calls not yet forgotten, and when that was
        self._lock = threading.Lock()

    def check(self, owner: str) -> None:
        """Count a call. Raises `RateLimited` for one too many, which does not count."""
        with self._lock:
            now = self._clock()
            used, then = self._used.get(owner, (0.0, now))
            used = max(0.0, used - (now - then) * self._most / 60)
            over = used + 1 - self._most
            if over > 0:
                wait_s = math.ceil(60 * over / self._most)
                raise RateLimited(
                    f"More than {self._most} jobs were created, paused or resumed within a minute, the most that this "
                    f"cloud allows an owner; try again in {wait_s} s.",
                    retry_after_s=wait_s,
                )
            self._used[owner] = (used + 1, now)
