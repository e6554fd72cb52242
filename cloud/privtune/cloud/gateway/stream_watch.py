"""Ends a stream from outside, whatever it waits for: with its key, and when its device does not read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from privtune.cloud.auth.key_rows import KEY_CHECK_S
from privtune.cloud.gateway.callers import Callers
from privtune.cloud.gateway.calls import Context, abort, this_task
from privtune.cloud.gateway.inbox import Inbox
from privtune.shared.errors import CloudUnreachable, PrivTuneError, Unauthenticated


class Unread:
    """How long a stream has been offering a message that its device does not read; at most `most_s` seconds.

    A connection of such a device is alive: it answers pings.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._since: float | None = None

    @contextmanager
    def offering(self) -> Iterator[None]:
        """While a message waits to be taken."""
        self._since = time.monotonic()
        yield
        self._since = None

    def check(self) -> None:
        """Raises CloudUnreachable for a message that has waited for too long."""
        if self._since is not None and time.monotonic() - self._since > self._most_s:
            raise CloudUnreachable(f"the device read nothing for {self._most_s:.0f} seconds; try again")


def watch(callers: Callers, context: Context, unread: Unread, inbox: Inbox | None = None) -> asyncio.Task[None]:
    """End this task's stream within seconds of its key's end, and of the time that its device has to read."""
    return asyncio.create_task(_watch(callers, context, this_task(), unread, inbox))


async def _watch(
    callers: Callers, context: Context, stream: asyncio.Task[Any], unread: Unread, inbox: Inbox | None
) -> None:
    ended: PrivTuneError | None = None
    while ended is None:
        await asyncio.sleep(KEY_CHECK_S)
        ended = await _why_ended(callers, context, unread)
    if inbox is not None:
        inbox.end(ended)  # the stream ends by itself, unless it computes or its device does not read
        await asyncio.sleep(KEY_CHECK_S)
    with suppress(Exception):
        async with asyncio.timeout(KEY_CHECK_S):
            await abort(context, ended)
    stream.cancel()


async def _why_ended(callers: Callers, context: Context, unread: Unread) -> PrivTuneError | None:
    try:
        unread.check()
    except CloudUnreachable as error:
        return error
    try:
        await callers.owner(context)
    except Unauthenticated as error:
        return error
    except PrivTuneError:
        pass  # the database is busy, or the cloud closes
    return None
