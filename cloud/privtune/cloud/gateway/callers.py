"""Who calls: the owner of an RPC's device or API key, and how much of the gateway it takes at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from privtune.cloud.auth import ApiKeys, Devices
from privtune.cloud.auth.devices import ENROL_AGAIN
from privtune.cloud.gateway.calls import Context, api_key, device_id
from privtune.cloud.limits import OwnerLimits
from privtune.cloud.settings import Settings
from privtune.shared.errors import CloudUnreachable, Unauthenticated

MAX_CALLS = 16  # of an owner at once, beside the streams of sessions: each holds what its device does not read


class Callers:
    """Authenticates and counts calls. Belongs to the event loop.

    refuse_new: raises while no call may begin, and ends those under way.
    """

    def __init__(
        self,
        settings: Settings,
        keys: ApiKeys,
        devices: Devices,
        limits: OwnerLimits,
        refuse_new: Callable[[], None],
    ) -> None:
        self._settings, self._keys, self._devices = settings, keys, devices
        self._limits, self._refuse_new = limits, refuse_new
        self._calls = Counter[str]()  # under way, by owner

    async def owner(self, context: Context) -> str:
        """The owner of a call that may be under way already. Raises as `authenticate` of devices and of keys."""
        self._refuse_new()
        if (device := device_id(context)) is not None:
            return (await asyncio.to_thread(self._devices.authenticate, device)).owner
        if self._settings.require_enrolment:
            raise Unauthenticated(f"This cloud takes enrolled devices alone. {ENROL_AGAIN}")
        return (await asyncio.to_thread(self._keys.authenticate, api_key(context), "device")).owner

    async def begin(self, context: Context) -> str:
        """The owner of a new call or stream. Raises as `owner`, and RateLimited."""
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
