"""The routes of whoever watches: a job's progress over its steps, how busy the hosts are, and which key asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.requests import Request

from privtune.cloud.api.job_routes import JobId
from privtune.cloud.api.key_routes import KeyObject, key_object
from privtune.cloud.api.responses import ErrorResponse
from privtune.cloud.auth import ApiKeys, bearer
from privtune.cloud.compute.host_load import HostLoad
from privtune.cloud.jobs.service import Jobs


class PointObject(BaseModel):
    """A job after a step. Counted over all of its sessions."""

    at: float = Field(description="Seconds since 1970.")
    step: int
    tokens: int = Field(description="Released rows that came, evaluations included.")
    bytes_up: int
    bytes_down: int
    loss: float | None = Field(description="With `labels: shared`, or where the device's owner shares it.")
    grad_norm: float | None = Field(description="Of the cloud's parameters, before clipping; null where none train.")
    held_out_loss: float | None = Field(description="Where the device's owner shares it.")
    accuracy: float | None = Field(description="On held-out records, the same.")


class CurveObject(BaseModel):
    """A job's progress over its steps, oldest first."""

    object: Literal["privtune.curve"]
    job_id: str
    statement: str | None = Field(description="What the device claims for its releases, where its owner shares that.")
    verdict: str | None = Field(description="What the device's audit of its own data found, the same.")
    points: list[PointObject] = Field(description="At most 240, spread over the job.")


class HostObject(BaseModel):
    """How busy a host is, over all owners."""

    object: Literal["privtune.host"]
    id: str
    device: str = Field(description="`cpu`, or the GPU's name.")
    jobs_bytes: int = Field(description="Memory that jobs hold beside the models.")
    max_jobs_bytes: int
    gpu_bytes: int | None = Field(description="Of the whole GPU, also by others; null without one.")
    max_gpu_bytes: int | None
    models: list[str] = Field(description="Base models in memory.")
    sessions: int = Field(description="Of training and of generation.")
    streams: int = Field(description="Open streams of devices.")
    queue: int = Field(description="Messages that wait for their turn.")
    busy_s: float = Field(description="How long the present work has taken; 0: it waits.")


class HostList(BaseModel):
    """All hosts of this cloud."""

    object: Literal["list"]
    data: list[HostObject]


def add_watch_routes(
    router: APIRouter,
    jobs: Jobs,
    keys: ApiKeys,
    caller: Callable[..., str],
    loads: Callable[[], Sequence[HostLoad]],
) -> None:
    """Add the routes. loads: of every host, now."""

    @router.get(
        "/fine_tuning/jobs/{job_id}/progress",
        tags=["Fine-tuning"],
        summary="Show a job's progress over its steps",
        response_model=CurveObject,
        responses={404: {"model": ErrorResponse, "description": "This API key has no such job."}},
    )
    def get_progress(job_id: JobId, owner: str = Depends(caller)) -> dict[str, Any]:
        """Points to draw curves from; for a job that ended before, those of its last checkpoint or change of state."""
        points, said = jobs.curve(job_id, owner)
        about = {name: said.get(name) for name in ("statement", "verdict")}
        return {"object": "privtune.curve", "job_id": job_id, "points": [asdict(point) for point in points]} | about

    @router.get("/privtune/hosts", tags=["PrivTune"], summary="How busy the hosts are", response_model=HostList)
    def list_hosts() -> dict[str, Any]:
        """Memory and queue, over all owners; nobody's name."""
        hosts = [asdict(load) | {"object": "privtune.host", "id": f"host-{n}"} for n, load in enumerate(loads(), 1)]
        return {"object": "list", "data": hosts}

    @router.get("/privtune/key", tags=["PrivTune"], summary="Show the key that asks", response_model=KeyObject)
    def get_own_key(request: Request) -> dict[str, Any]:
        """Whose it is and what it may do."""
        return key_object(keys.authenticate(bearer(request.headers.get("authorization")), "read"))
