"""The one thread that touches models, and since when it is at what it does now."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ComputeThread(ThreadPoolExecutor):
    """One piece of work after another, in the order in which they came."""

    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="compute")
        self._since: float | None = None

    @property
    def busy_s(self) -> float:
        """Seconds for which it has been at its present work; 0 while it waits."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `Executor.submit`."""
        return super().submit(self._timed, fn, *args, **kwargs)

    def _timed(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._since = time.monotonic()
        try:
            return fn(*args, **kwargs)
        finally:
            self._since = None
