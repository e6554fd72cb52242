"""One bound on what all jobs together hold in memory beside the models.

Frames and answers of their streams, releases, pending forward passes, texts, and the weights that they train.
"""

from __future__ import annotations

import threading
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from privtune.shared.errors import CloudOutOfMemory, CloudUnreachable

MIB = 1024 * 1024


@runtime_checkable
class Cache(Protocol):
    """A holder that can do with less."""

    def shed(self) -> None:
        """Free a part, at least one entry, and enter it."""


class MemoryBudget:
    """Bytes by holder; a holder that is gone frees its own. Thread-safe, but caches give way on the caller's thread.

    max_bytes: bound on all holders together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._lock = threading.RLock()

    @property
    def used(self) -> int:
        """Bytes of all holders together."""
        with self._lock:
            return sum(self._held.values())

    def fits(self, holder: object, size: int) -> bool:
        """Whether `holder` may hold `size` bytes in all."""
        with self._lock:
            return self.used - self._held.get(holder, 0) + size <= self.max_bytes

    def hold_at_once(self, holder: object, size: int) -> bool:
        """Enter that `holder` holds `size` bytes in all, unless a cache would have to give way; whether it was."""
        with self._lock:
            if size > self._held.get(holder, 0) and not self.fits(holder, size):
                return False
            self._held[holder] = size
            return True

    def hold(self, holder: object, size: int) -> None:
        """Enter that `holder` holds `size` bytes in all; the largest caches of others give way.

        Raises, when it is more than before and over the bound: `CloudOutOfMemory` for a size that never fits,
        else `CloudUnreachable`, which devices answer by trying again later.
        """
        with self._lock:
            while not self.hold_at_once(holder, size):
                if size > self.max_bytes:
                    raise CloudOutOfMemory(
                        f"the cloud is out of memory: this job needs {size / MIB:.0f} MiB at once, and all jobs have "
                        f"{self.max_bytes / MIB:.0f}; lower --batch-size, or ask the operator to raise "
                        "--max-memory-mib"
                    )
                caches = [one for one in self._held if isinstance(one, Cache) and one is not holder and self._held[one]]
                if not caches:
                    raise CloudUnreachable(
                        f"this cloud's memory for jobs ({self.max_bytes / MIB:.0f} MiB) is in use; lower "
                        "--batch-size, try again later, or ask the operator to raise --max-memory-mib"
                    )
                max(caches, key=self._held.__getitem__).shed()
