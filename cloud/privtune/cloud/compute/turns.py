"""The one thread that touches models: owners take turns by the time that they use, and it never idles while one waits.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each owner has a clock of the seconds that its work took,
the next turn is that of the clock furthest behind, and an owner that comes back starts level with the others. So what
an owner gets does not depend on how many jobs it runs, nor on how large their micro-batches are.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from privtune.cloud import meters

T = TypeVar("T")
NOBODY = ""  # the cloud's own work


class Turns:
    """Runs functions on a thread of its own, one at a time; those of one owner in the order in which they came."""

    def __init__(self) -> None:
        # Of owners that have work: the future, the function, and when it came.
        self._waiting: dict[str, deque[tuple[Future[Any], Callable[[], Any], float]]] = {}
        self._used: dict[str, float] = {}  # seconds, by owner
        self._level = 0.0  # the clock of the owner whose turn it is
        self._since: float | None = None  # the present work began
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    @property
    def busy_s(self) -> float:
        """Seconds for which it has been at its present work; 0 while it waits."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def waiting(self) -> dict[str, int]:
        """Pieces of work that wait for their turn, by owner."""
        with self._changed:
            return {owner: len(queue) for owner, queue in self._waiting.items()}

    def submit(self, owner: str, function: Callable[[], T]) -> Future[T]:
        """Run a function for an owner, in its turn. Raises RuntimeError after `close`."""
        future = Future[T]()
        with self._changed:
            if self._closed:
                raise RuntimeError("the compute thread has ended")
            if owner not in self._waiting:
                self._waiting[owner] = deque()
                self._used[owner] = max(self._used.get(owner, 0.0), self._level)
            self._waiting[owner].append((future, function, time.monotonic()))
            self._changed.notify()
        return future

    def close(self) -> None:
        """End the thread once all that waits is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (turn := self._next()) is not None:
            owner, future, function, came = turn
            began = time.monotonic()
            if future.set_running_or_notify_cancel():
                self._since = began
                try:
                    result = function()
                except BaseException as error:
                    self._since = None
                    future.set_exception(error)
                else:
                    self._since = None
                    future.set_result(result)
                    del result
            del turn, future, function  # what they hold is not kept until the next turn
            took = time.monotonic() - began
            with self._changed:
                self._used[owner] += took
            meters.turn(owner, began - came, took)

    def _next(self) -> tuple[str, Future[Any], Callable[[], Any], float] | None:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            owner = min(self._waiting, key=self._used.__getitem__)
            self._level = self._used[owner]
            queue = self._waiting[owner]
            future, function, came = queue.popleft()
            if not queue:
                del self._waiting[owner]
            return owner, future, function, came
