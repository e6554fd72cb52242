"""The one thread that touches models: owners take turns by the time that they use, and it never idles while one waits.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each owner has a clock of the seconds that its work took,
the next turn is that of the clock furthest behind, and an owner that comes back starts level with the others. So what
an owner gets does not depend on how many jobs it runs, nor on how large their micro-batches are.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from privtune.cloud import meters

T = TypeVar("T")
NOBODY = ""  # the cloud's own work


@dataclass(kw_only=True, eq=False)
class _Turn:
    """One piece of work.

    function: takes the items of all turns that are done with it.
    key: of turns that may be done together; None: none.
    came: when, on the monotonic clock.
    most: how many may.
    """

    owner: str
    future: Future[Any]
    function: Callable[..., Any]
    item: Any = None
    key: Hashable = None
    most: int = 1
    came: float = field(default_factory=time.monotonic)


class Turns:
    """Runs functions on a thread of its own, one at a time; those of one owner in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[_Turn]] = {}  # of owners that have work
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
        return self._add(_Turn(owner=owner, future=Future[T](), function=lambda _: function()))

    def submit_work(
        self, owner: str, item: T, key: Hashable, function: Callable[[Sequence[T]], object], most: int
    ) -> Future[None]:
        """Run a function on an item in its owner's turn, with up to `most - 1` items of the same key that wait by then.

        key: None: alone. Raises RuntimeError after `close`.
        """
        return self._add(_Turn(owner=owner, future=Future[None](), function=function, item=item, key=key, most=most))

    def close(self) -> None:
        """End the thread once all that waits is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _add(self, turn: _Turn) -> Future[Any]:
        owner = turn.owner
        with self._changed:
            if self._closed:
                raise RuntimeError("the compute thread has ended")
            if owner not in self._waiting:
                self._waiting[owner] = deque()
                self._used[owner] = max(self._used.get(owner, 0.0), self._level)
            self._waiting[owner].append(turn)
            self._changed.notify()
        return turn.future

    def _run(self) -> None:
        while turns := self._next():
            began = time.monotonic()
            wanted = [turn for turn in turns if turn.future.set_running_or_notify_cancel()]
            if wanted:
                self._since = began
                try:
                    result = wanted[0].function([turn.item for turn in wanted])
                except BaseException as error:
                    self._since = None
                    for turn in wanted:
                        turn.future.set_exception(error)
                else:
                    self._since = None
                    for turn in wanted:
                        turn.future.set_result(result)
                    del result
            took = (time.monotonic() - began) / len(turns)
            shares = [(turn.owner, began - turn.came) for turn in turns]
            del turns, wanted  # what they hold is not kept until the next turn
            with self._changed:
                for owner, _ in shares:
                    self._used[owner] += took
            for owner, waited in shares:
                meters.turn(owner, waited, took)

    def _next(self) -> list[_Turn]:
        """The next turn and those taken along; none at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            owner = min(self._waiting, key=self._used.__getitem__)
            self._level = self._used[owner]
            first = self._waiting[owner][0]
            turns = [first, *self._like(first)]
            for turn in turns:
                queue = self._waiting[turn.owner]
                queue.remove(turn)
                if not queue:
                    del self._waiting[turn.owner]
            return turns

    def _like(self, first: _Turn) -> list[_Turn]:
        """Those of its key that may come along: one of each owner before a second of any, the owners furthest behind
        first.
        """
        if first.key is None:
            return []
        found: list[tuple[int, float, _Turn]] = []
        for owner, queue in self._waiting.items():
            alike = [turn for turn in queue if turn.key == first.key and turn is not first]
            found += [(place + (owner == first.owner), self._used[owner], turn) for place, turn in enumerate(alike)]
        return [turn for _, _, turn in sorted(found, key=lambda entry: entry[:2])[: first.most - 1]]
