"""Ends a stream from outside, whatever it waits for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from privtune.cloud.auth.key_rows import KEY_CHECK_S
from privtune.cloud.gateway.callers import Callers
from privtune.cloud.gateway.calls import Context, abort, this_task
from privtune.cloud.gateway.inbox import Inbox
from privtune.shared.errors import PrivTuneError, Unauthenticated


def watch(callers: Callers, context: Context, inbox: Inbox | None = None) -> asyncio.Task[None]:
    """End this task's stream within seconds of its key's end."""
    return asyncio.create_task(_end_with_key(callers, context, this_task(), inbox))


async def _end_with_key(callers: Callers, context: Context, stream: asyncio.Task[Any], inbox: Inbox | None) -> None:
    ended: PrivTuneError | None = None
    while ended is None:
        await asyncio.sleep(KEY_CHECK_S)
        try:
            await callers.owner(context)
        except Unauthenticated as error:
            ended = error
        except PrivTuneError:
            continue  # the database is busy, or the cloud closes
    if inbox is not None:
        inbox.end(ended)  # the stream ends by itself, unless it computes or its device does not read
        await asyncio.sleep(KEY_CHECK_S)
    with suppress(Exception):
        async with asyncio.timeout(KEY_CHECK_S):
            await abort(context, ended)
    stream.cancel()
