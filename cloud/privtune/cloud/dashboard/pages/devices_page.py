"""Enrolled devices of the owner, for a key with the scope `admin`."""

from __future__ import annotations

from starlette.responses import Response

from privtune.cloud.dashboard.visit import Visit, to


async def show(visit: Visit) -> Response:
    """All devices."""
    devices = await visit.rest.get("privtune", "devices")
    return visit.page("devices.html", devices=devices["data"])


async def revoke(visit: Visit) -> Response:
    """Shut a device out now."""
    await visit.rest.post("privtune", "devices", visit.id, "revoke")
    return to("/devices")
