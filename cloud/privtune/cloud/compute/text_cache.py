"""Attention keys and values of the texts that are being generated, over all inference sessions of this cloud.

Bounded in bytes and in texts: the least recently used text is evicted, and its device is asked to resend it (the
identical bytes, so a resend reveals nothing new). Used on the compute thread only.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from privtune.cloud.compute.memory_budget import MemoryBudget, OwnersBudget
from privtune.cloud.compute.release_cache import NotHeld
from privtune.cloud.compute.turns import NOBODY
from privtune.shared.errors import FrameCorrupt, MessageTooLarge, PrivTuneError
from privtune.shared.modeling.kv_cache import TopCache
from privtune.shared.wording import counted

MIB = 1024 * 1024


@dataclass(kw_only=True)
class _Kept:
    cache: TopCache
    size: int
    used: float


class TextCache:
    """The keys and values of each text, by session and record handle.

    max_bytes: bound on all keys and values together.
    max_texts: bound on the number of texts.
    budget: shared with everything else that jobs hold; None: the texts' own.
    idle_s: seconds after which `drop_idle` frees a text that was not extended.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_texts: int,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
        budget: OwnersBudget | None = None,
    ) -> None:
        self._budget = budget or MemoryBudget(max_bytes).of(NOBODY)
        self.max_bytes, self._max_texts, self.idle_s, self._clock = max_bytes, max_texts, idle_s, clock
        self._kept: OrderedDict[tuple[Hashable, int], _Kept] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, session: Hashable, handle: int, past: int) -> TopCache:
        """The keys and values of a text's first `past` rows.

        Raises `NotHeld` for a text that was evicted, `FrameCorrupt` when another number of rows is kept.
        """
        kept = self._kept.get((session, handle))
        if kept is None:
            raise NotHeld
        if kept.cache.past != past:
            raise FrameCorrupt(
                f"a text continues after {counted(past, 'row')}, but {kept.cache.past} of it are kept here"
            )
        return kept.cache

    def put(self, session: Hashable, handle: int, cache: TopCache) -> None:
        """Replace what is kept of a text, and evict others over the bounds.

        Raises `MessageTooLarge` for a text that is over `max_bytes` by itself, `CloudUnreachable` over the budget.
        """
        size = cache.nbytes
        self.drop(session, [handle])
        if size > self.max_bytes:
            raise MessageTooLarge(
                f"a text of {counted(cache.past, 'token')} needs {size / MIB:.0f} MiB of keys and values, over "
                "this cloud's "
                f"{self.max_bytes / MIB:.0f}; generate a shorter one, or ask the operator to raise --max-texts-mib"
            )
        self._kept[session, handle] = _Kept(cache=cache, size=size, used=self._clock())
        self.size += size
        while len(self._kept) > 1 and not self._fits():
            self._forget(next(iter(self._kept)))
        try:
            self._budget.hold(self, self.size)
        except PrivTuneError:
            self._forget((session, handle))
            raise

    def drop(self, session: Hashable, handles: Iterable[int]) -> None:
        """Free texts; unknown handles are ignored."""
        for handle in handles:
            if (session, handle) in self._kept:
                self._forget((session, handle))

    def drop_session(self, session: Hashable) -> None:
        """Free all texts of a session."""
        self.drop(session, [handle for owner, handle in list(self._kept) if owner == session])

    def drop_idle(self) -> None:
        """Free texts that were not extended for `idle_s` seconds."""
        before = self._clock() - self.idle_s
        for key in [key for key, kept in self._kept.items() if kept.used < before]:
            self._forget(key)

    def _forget(self, key: tuple[Hashable, int]) -> None:
        self.size -= self._kept.pop(key).size
        self._budget.hold(self, self.size)

    def _fits(self) -> bool:
        within = self.size <= self.max_bytes and len(self._kept) <= self._max_texts
        return within and self._budget.fits(self, self.size)
