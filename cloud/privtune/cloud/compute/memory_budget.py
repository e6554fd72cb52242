"""One bound on what all jobs together hold in memory beside the models: releases, pending forward passes, texts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from privtune.shared.errors import CloudUnreachable

MIB = 1024 * 1024


@runtime_checkable
class Cache(Protocol):
    """A holder that can do with less."""

    def shed(self) -> None:
        """Free a part, at least one entry, and enter it."""


class MemoryBudget:
    """Bytes by holder; a holder that is gone frees its own. For one thread at a time.

    max_bytes: bound on all holders together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    def fits(self, holder: object, size: int) -> bool:
        """Whether `holder` may hold `size` bytes in all."""
        return sum(self._held.values()) - self._held.get(holder, 0) + size <= self._max_bytes

    def hold(self, holder: object, size: int) -> None:
        """Enter that `holder` holds `size` bytes in all; the largest caches of others give way.

        Raises `CloudUnreachable`, which devices answer by trying again later, when it is more than before and over the
        bound.
        """
        while size > self._held.get(holder, 0) and not self.fits(holder, size):
            caches = [one for one in self._held if isinstance(one, Cache) and one is not holder and self._held[one]]
            if not caches:
                raise CloudUnreachable(
                    f"this cloud's memory for jobs ({self._max_bytes / MIB:.0f} MiB) is in use; lower --batch-size, "
                    "try again later, or ask the operator to raise --max-memory-mib"
                )
            max(caches, key=self._held.__getitem__).shed()
        self._held[holder] = size
