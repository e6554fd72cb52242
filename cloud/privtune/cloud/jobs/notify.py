"""Wakes subscribers of a job, from any thread into the event loop. Carries no data: subscribers read the store."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from privtune.shared.errors import PermissionDenied


class Subscription:
    """One subscriber. It wakes once however many changes happen between two waits, so memory stays bounded."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._flag = asyncio.Event()
        self.closed = False

    async def wait(self, timeout_s: float) -> bool:
        """True once the job may have changed, False after `timeout_s` seconds."""
        try:
            await asyncio.wait_for(self._flag.wait(), timeout_s)
        except TimeoutError:
            return False
        self._flag.clear()
        return True

    def wake(self) -> None:
        """End the present wait; may be called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._flag.set)


class Notifier:
    """Subscriptions by job, at most `max_subscriptions`. When they are all taken, owners share them evenly."""

    def __init__(self, max_subscriptions: int = 256) -> None:
        self._max = max_subscriptions
        self._count = 0
        self._owners: dict[Subscription, str] = {}
        self._closed = False
        self._waiters: dict[str, set[Subscription]] = defaultdict(set)
        self._lock = threading.Lock()

    @contextmanager
    def subscribe(self, job_id: str, owner: str = "") -> Iterator[Subscription]:
        """Subscribe to a job on the running event loop.

        Over the limit, the owner with the most subscriptions loses the oldest, unless the caller's own has as many.
        Raises PermissionDenied.
        """
        subscription = Subscription()
        with self._lock:
            if self._count >= self._max and not self._make_room(owner):
                raise PermissionDenied(
                    f"This cloud streams events to at most {self._max} listeners; close one, or poll /events instead."
                )
            self._count += 1
            self._owners[subscription] = owner
            subscription.closed = self._closed
            self._waiters[job_id].add(subscription)
        try:
            yield subscription
        finally:
            with self._lock:
                self._count -= self._owners.pop(subscription, None) is not None
                self._waiters[job_id].discard(subscription)
                if not self._waiters[job_id]:
                    del self._waiters[job_id]

    def _make_room(self, owner: str) -> bool:
        """End the oldest subscription of the owner with the most; False when `owner` would then have more."""
        counts = Counter(self._owners.values())
        if not counts:
            return False
        greedy, most = counts.most_common(1)[0]
        if most <= counts[owner] + 1:
            return False
        oldest = next(one for one, holder in self._owners.items() if holder == greedy)
        del self._owners[oldest]
        self._count -= 1
        oldest.closed = True
        oldest.wake()
        return True

    def publish(self, job_id: str) -> None:
        """Wake the subscribers of a job that has changed."""
        with self._lock:
            waiters = list(self._waiters.get(job_id, ()))
        for waiter in waiters:
            waiter.wake()

    def close(self) -> None:
        """Wake every subscriber for the last time: the server stops."""
        with self._lock:
            self._closed = True
            waiters = [waiter for group in self._waiters.values() for waiter in group]
        for waiter in waiters:
            waiter.closed = True
            waiter.wake()
