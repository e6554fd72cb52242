"""The overview: jobs, newest first, and the hosts."""

from __future__ import annotations

from starlette.responses import Response

from privtune.cloud.dashboard.live_parts import changes, poller
from privtune.cloud.dashboard.visit import ROOT, Visit

_EVERY_S = 3.0
_ON_PAGE = 25


async def overview(visit: Visit) -> Response:
    """All of an owner's jobs, a page of them at a time."""
    parts = await _parts(visit)
    query = str(visit.request.url.query)
    address = f"{ROOT}/live" + (f"?{query}" if query else "")
    return visit.page("overview.html", parts=parts, poller=poller(address, parts, _EVERY_S))


async def overview_live(visit: Visit) -> Response:
    """What has changed of it."""
    return changes(visit.request, await _parts(visit), _EVERY_S)


async def _parts(visit: Visit) -> dict[str, str]:
    after = visit.request.query_params.get("after")
    listed = await visit.rest.get("fine_tuning", "jobs", limit=_ON_PAGE, **({"after": after} if after else {}))
    hosts = await visit.rest.get("privtune", "hosts")
    return {
        "jobs": visit.part("overview_jobs.html", jobs=listed, first_page=after is None),
        "hosts": visit.part("overview_hosts.html", hosts=hosts["data"]),
    }
