"""API keys of the owner, for a key with the scope `admin`."""

from __future__ import annotations

from starlette.responses import Response

from privtune.cloud.dashboard.inside_rest import Refused
from privtune.cloud.dashboard.visit import Visit, to

_DAY_S = 86400


async def show(visit: Visit) -> Response:
    """All keys."""
    return await _shown(visit)


async def create(visit: Visit) -> Response:
    """A new key, shown with its secret this once."""
    days = visit.said("days")
    if days and not (days.isdecimal() and len(days) < 6):
        raise Refused(400, "Days until it ends: write a whole number, or nothing for a key that does not end.")
    made = await visit.rest.post(
        "privtune",
        "keys",
        body={
            "label": visit.said("label"),
            "scopes": [str(scope) for scope in visit.form.getlist("scopes")],
            "expires_in_s": int(days) * _DAY_S if days else None,
        },
    )
    return await _shown(visit, made["secret"])


async def rotate(visit: Visit) -> Response:
    """A new secret for the same purpose; the old one works for a day more."""
    made = await visit.rest.post("privtune", "keys", visit.id, "rotate", body={"overlap_s": _DAY_S})
    return await _shown(visit, made["secret"])


async def revoke(visit: Visit) -> Response:
    """End a key now."""
    await visit.rest.post("privtune", "keys", visit.id, "revoke")
    return to("/keys")


async def _shown(visit: Visit, secret: str = "") -> Response:
    keys = await visit.rest.get("privtune", "keys")
    return visit.page("keys.html", keys=keys["data"], secret=secret)
