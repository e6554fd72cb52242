"""One job: its state and why, its curves, what leaves the device, its events, and what its owner can do."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from privtune.cloud.dashboard.drawn_curves import curves_of
from privtune.cloud.dashboard.live_parts import changes, poller
from privtune.cloud.dashboard.visit import ROOT, Visit, to
from privtune.cloud.dashboard.words import what_leaves

_EVERY_S = 2.0
_EVENTS = 30
_FINAL = ("succeeded", "failed", "cancelled")


async def show(visit: Visit) -> Response:
    """The whole page."""
    job, parts = await _parts(visit)
    ended = job["status"] in _FINAL
    address = f"{ROOT}/jobs/{job['id']}/live"
    return visit.page(
        "job.html",
        job=job,
        leaves=what_leaves(job["privtune"]["spec"]),
        parts=parts,
        poller=poller(address, parts, None if ended else _EVERY_S),
    )


async def live(visit: Visit) -> Response:
    """What has changed of it."""
    job, parts = await _parts(visit)
    return changes(visit.request, parts, None if job["status"] in _FINAL else _EVERY_S)


async def pause(visit: Visit) -> Response:
    """Hold it from the next step boundary on."""
    return await _act(visit, "pause")


async def resume(visit: Visit) -> Response:
    """Let it continue."""
    return await _act(visit, "resume")


async def cancel(visit: Visit) -> Response:
    """End it for good."""
    return await _act(visit, "cancel")


async def release(visit: Visit) -> Response:
    """Let another device begin it again."""
    return await _act(visit, "release")


async def delete(visit: Visit) -> Response:
    """Delete it, and show what went."""
    receipt = await visit.rest.delete("fine_tuning", "jobs", visit.id)
    return visit.page("deleted.html", receipt=receipt["privtune"])


async def _act(visit: Visit, action: str) -> Response:
    await visit.rest.post("fine_tuning", "jobs", visit.id, action)
    return to(f"/jobs/{visit.id}")


async def _parts(visit: Visit) -> tuple[dict[str, Any], dict[str, str]]:
    job = await visit.rest.get("fine_tuning", "jobs", visit.id)
    curve = await visit.rest.get("fine_tuning", "jobs", visit.id, "progress")
    events = await visit.rest.get("fine_tuning", "jobs", visit.id, "events", limit=_EVENTS)
    curves = curves_of(curve["points"], job["privtune"]["progress"]["total_steps"])
    return job, {
        "said": visit.part("job_said.html", job=job),
        "status": visit.part("job_status.html", job=job),
        "actions": visit.part("job_actions.html", job=job),
        "claims": visit.part("job_claims.html", job=job, curve=curve),
        "curves": visit.part("job_curves.html", curves=curves),
        "events": visit.part("job_events.html", events=events),
    }
