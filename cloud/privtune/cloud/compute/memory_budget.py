"""One bound on what all jobs together hold in memory beside the models, shared fairly by owners.

Frames and answers of their streams, releases, pending forward passes, texts, and the weights that they train.

An equal share is the bound divided by the owners who hold or ask for something. An owner may take more as long as
nobody is short of it. Where an owner within its share does not fit, caches give way, those of the owner who holds most
first. Where that is not enough, it is told to come back, room is kept for it meanwhile, and the owner who holds most
gives up sessions.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from privtune.cloud.compute.turns import NOBODY
from privtune.shared.errors import CloudOutOfMemory, CloudUnreachable

MIB = 1024 * 1024
KEPT_S = 60.0  # for an owner who was told to come back; devices do within half of that


@runtime_checkable
class Cache(Protocol):
    """A holder that can do with less."""

    def shed(self) -> None:
        """Free a part, at least one entry, and enter it."""


@dataclass(kw_only=True)
class _Asked:
    size: int
    until: float


class MemoryBudget:
    """Bytes by holder; a holder that is gone frees its own. Thread-safe, but caches give way on the caller's thread.

    max_bytes: bound on all holders together.
    clock: in seconds.
    gives_up: told the owner who has to give up sessions, and how many bytes, on the thread that calls `hold`.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes, self._clock = max_bytes, clock
        self._held: WeakKeyDictionary[object, tuple[str, int]] = WeakKeyDictionary()
        self._asked: dict[str, _Asked] = {}
        self._lock = threading.RLock()
        self.gives_up: Callable[[str, int], None] = lambda owner, size: None

    @property
    def held_bytes(self) -> int:
        """What all holders hold together."""
        with self._lock:
            return self._totals().total()

    def of(self, owner: str) -> OwnersBudget:
        """The budget as the holders of an owner use it."""
        return OwnersBudget(self, owner)

    def fits(self, holder: object, size: int, owner: str) -> bool:
        """Whether `holder` may hold `size` bytes in all."""
        with self._lock:
            more = size - self.held_by(holder)
            return self.held_bytes + more + self._kept_from(owner, more) <= self.max_bytes

    def hold_at_once(self, holder: object, size: int, owner: str) -> bool:
        """Enter that `holder` holds `size` bytes in all, unless a cache would have to give way; whether it was."""
        with self._lock:
            if size > self.held_by(holder):
                if not self.fits(holder, size, owner):
                    return False
                self._asked.pop(owner, None)
            self._held[holder] = owner, size
            return True

    def hold(self, holder: object, size: int, owner: str) -> None:
        """Enter that `holder` holds `size` bytes in all; caches of others give way.

        Raises, when it is more than before and over the bound: `CloudOutOfMemory` for a size that never fits,
        else `CloudUnreachable`, which devices answer by trying again later.
        """
        with self._lock:
            searched = False
            while not self.hold_at_once(holder, size, owner):
                if size > self.max_bytes:
                    raise CloudOutOfMemory(
                        f"the cloud is out of memory: this job needs {size / MIB:.0f} MiB at once, and all jobs have "
                        f"{self.max_bytes / MIB:.0f}; lower --batch-size, or ask the operator to raise "
                        "--max-memory-mib"
                    )
                caches = self._caches(holder, owner, size - self.held_by(holder))
                if not caches and not searched:  # models refer to themselves: ended sessions wait for the collector
                    gc.collect()
                    searched = True
                elif not caches:
                    self._ask(owner, size - self.held_by(holder))
                    raise CloudUnreachable(
                        f"this cloud's memory for jobs ({self.max_bytes / MIB:.0f} MiB) is in use; lower "
                        "--batch-size, try again later, or ask the operator to raise --max-memory-mib"
                    )
                else:
                    caches[0].shed()

    def held_by(self, holder: object) -> int:
        """Bytes of a holder."""
        return self._held.get(holder, (NOBODY, 0))[1]

    def _totals(self) -> Counter[str]:
        totals = Counter[str]()
        for owner, size in self._held.values():
            totals[owner] += size
        return totals

    def _share(self, owner: str) -> int:
        """An equal share, if this owner asks too."""
        holding = {one for one, size in self._totals().items() if size}
        return self.max_bytes // len((holding | self._asked.keys() | {owner}) - {NOBODY} or {owner})

    def _caches(self, holder: object, owner: str, more: int) -> list[Cache]:
        """Those that give way, the first one first: within its share an owner keeps them from one beyond its own."""
        totals, share = self._totals(), self._share(owner)
        beyond = totals[owner] + more > share
        found = [
            (totals[whose], size, one)
            for one, (whose, size) in self._held.items()
            if size and one is not holder and isinstance(one, Cache) and (not beyond or totals[whose] > share)
        ]
        return [one for _, _, one in sorted(found, key=lambda each: each[:2], reverse=True)]

    def _kept_from(self, owner: str, more: int) -> int:
        """Bytes that are kept for others from an owner who would have more than its share."""
        now = self._clock()
        self._asked = {one: asked for one, asked in self._asked.items() if asked.until > now}
        if owner == NOBODY or self._totals()[owner] + more <= self._share(owner):
            return 0
        return sum(asked.size for one, asked in self._asked.items() if one != owner)

    def _ask(self, owner: str, more: int) -> None:
        """Keep room for an owner within its share; the one who holds most gives it up."""
        totals, share = self._totals(), self._share(owner)
        if owner == NOBODY or totals[owner] + more > share:
            return
        del totals[NOBODY]
        asked_before, (most, held) = owner in self._asked, totals.most_common(1)[0] if totals else (NOBODY, 0)
        self._asked[owner] = _Asked(size=more, until=self._clock() + KEPT_S)
        if held > share and not asked_before:
            self.gives_up(most, min(more, held - share))


@dataclass(frozen=True)
class OwnersBudget:
    """The budget for the holders of one owner; see the methods of `MemoryBudget`."""

    _budget: MemoryBudget
    _owner: str

    def fits(self, holder: object, size: int) -> bool:
        """Whether `holder` may hold `size` bytes in all."""
        return self._budget.fits(holder, size, self._owner)

    def hold_at_once(self, holder: object, size: int) -> bool:
        """Enter it where no cache has to give way; whether it was."""
        return self._budget.hold_at_once(holder, size, self._owner)

    def hold(self, holder: object, size: int) -> None:
        """Enter it. Raises as `MemoryBudget.hold`."""
        self._budget.hold(holder, size, self._owner)
