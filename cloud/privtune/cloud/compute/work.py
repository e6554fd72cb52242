"""A pass that a session's message wants, as a value: whoever has the compute thread computes it, alone or with others.

Passes of several jobs over one slice of one base run as one (`privtune.shared.modeling.joint_top`). Such a pass keeps
one graph for its members, which serves one backward pass: of those whose gradients are there, if they are at least half
of its rows. The others run forward once more with whoever comes back with them; nobody waits for a partner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from privtune.cloud.compute.out_of_memory import within_memory
from privtune.shared.errors import JobConflict

log = logging.getLogger(__name__)
T = TypeVar("T")
MOST_PADDED = 1.25  # a joint pass has at most this many times its members' own rows, padding included


@dataclass(kw_only=True)
class Work(Generic[T]):
    """One pass.

    alone: computes it by itself.
    key: works of one key may be computed together by `together`; None: only alone.
    shape: records and positions, padding included.
    most_rows: of a pass of several.
    valid: whether it is still wanted: a rewind of the top drops what was asked for before it.
    about: what `together` needs to know of it.
    counted: told the seconds that it took.
    traced: a span for the time that it takes.
    """

    alone: Callable[[], T]
    key: Hashable = None
    together: Callable[[Sequence[Work[T]]], list[T]] | None = None
    shape: tuple[int, int] = (0, 0)
    most_rows: int = 0
    valid: Callable[[], bool] = lambda: True
    about: Any = None
    counted: Callable[[float], None] = lambda seconds: None
    traced: Callable[[], AbstractContextManager[None]] = nullcontext

    def __post_init__(self) -> None:
        self._done: Callable[[], T] | None = None

    def compute(self) -> None:
        """Compute it alone; a failure is kept for `result`."""
        began = time.perf_counter()
        try:
            if not self.valid():
                raise JobConflict("the job's step began anew meanwhile, so this message counts no more")
            with self.traced():
                value = within_memory(self.alone)
            self.settle(value, time.perf_counter() - began)
        except Exception as error:
            self._done = partial(_raise, error)

    def settle(self, value: T, seconds: float) -> None:
        """It has been computed, in so many seconds."""
        self._done = lambda: value
        self.counted(seconds)

    def result(self) -> T:
        """What it gave. Raises what it raised."""
        if self._done is None:
            raise RuntimeError("this pass has not been computed")
        return self._done()

    def now(self) -> T:
        """Compute it alone. Raises what it raises."""
        self.compute()
        return self.result()


def finished(works: Generator[Work[Any], None, T]) -> T:
    """What a generator returns once each of its works has been computed, alone."""
    while True:
        try:
            next(works).compute()
        except StopIteration as end:
            found: T = end.value
            return found


def compute_together(works: Sequence[Work[Any]]) -> None:
    """Compute works of one key, with little padding. A failure is that of its own work alone."""
    for group in _alike([work for work in works if work.valid()]):
        together = group[0].together
        if len(group) > 1 and together is not None:
            began = time.perf_counter()
            try:
                with ExitStack() as spans:
                    for work in group:
                        spans.enter_context(work.traced())
                    found = within_memory(together, group)
            except Exception as error:  # whose it is shows when they are computed alone
                log.info("%d passes are computed alone: %r", len(group), error)
            else:
                share = (time.perf_counter() - began) / len(group)
                for work, value in zip(group, found, strict=True):
                    work.settle(value, share)
                continue
        for work in group:
            work.compute()
    for work in works:
        if not work.valid():
            work.compute()


def _alike(works: Sequence[Work[Any]]) -> list[list[Work[Any]]]:
    """Works in groups that are within `MOST_PADDED` and the most rows, padded to each group's longest records."""
    groups: list[list[Work[Any]]] = []
    for work in sorted(works, key=lambda work: -work.shape[1]):
        members = [*groups[-1], work] if groups else [work]
        own = sum(records * longest for records, longest in (member.shape for member in members))
        padded = sum(member.shape[0] for member in members) * members[0].shape[1]
        if groups and padded <= min(MOST_PADDED * own, work.most_rows):
            groups[-1].append(work)
        else:
            groups.append([work])
    return groups


def _raise(error: Exception) -> Any:
    raise error
