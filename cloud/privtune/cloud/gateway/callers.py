"""Who calls: the owner of an RPC's API key, and how much of the gateway it takes at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from privtune.cloud.auth import ApiKeys
from privtune.cloud.gateway.calls import Context, api_key
from privtune.cloud.limits import OwnerLimits
from privtune.shared.errors import CloudUnreachable

MAX_CALLS = 16  # of an owner at once, beside the streams of sessions: each holds what its device does not read


class Callers:
    """Authenticates and counts calls. Belongs to the event loop.

    refuse_new: raises while no call may begin, and ends those under way.
    """

    def __init__(self, keys: ApiKeys, limits: OwnerLimits, refuse_new: Callable[[], None]) -> None:
        self._keys, self._limits, self._refuse_new = keys, limits, refuse_new
        self._calls = Counter[str]()  # under way, by owner

    async def owner(self, context: Context) -> str:
        """The owner of a call that may be under way already. Raises as `ApiKeys.authenticate`."""
        self._refuse_new()
        return (await asyncio.to_thread(self._keys.authenticate, api_key(context), "device")).owner

    async def begin(self, context: Context) -> str:
        """The owner of a new call or stream. Raises as `ApiKeys.authenticate`, and RateLimited."""
        owner = await self.owner(context)
        await asyncio.to_thread(self._limits.count_request, owner)
        return owner

    @asynccontextmanager
    async def call(self, context: Context) -> AsyncIterator[str]:
        """The owner of a call, counted while it is under way. Raises CloudUnreachable for one too many."""
        owner = await self.begin(context)
        if self._calls[owner] >= MAX_CALLS:
            raise CloudUnreachable(f"{MAX_CALLS} calls of this owner are under way; try again when they have ended")
        self._calls[owner] += 1
        try:
            yield owner
        finally:
            self._calls[owner] -= 1
