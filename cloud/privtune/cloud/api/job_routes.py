"""The routes of fine-tuning jobs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from privtune.cloud.api.convert import (
    checkpoint_object,
    event_id,
    event_object,
    job_object,
    list_object,
    number_of,
    to_spec,
)
from privtune.cloud.api.pace import Pace
from privtune.cloud.api.requests import CreateJobRequest
from privtune.cloud.api.responses import CheckpointPage, ErrorResponse, EventPage, JobObject, JobPage
from privtune.cloud.auth.key_rows import KEY_CHECK_S
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.states import Job, Status
from privtune.cloud.jobs.teachings import Teachings
from privtune.shared.errors import JobNotFound, Unauthenticated

_PING_S = 15
_BATCH = 100
_METADATA = re.compile(r"^metadata\[(.{1,64})\]$")
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "This API key has no such job."}
}
_CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorResponse, "description": "The job's state does not allow it."}
}
FORBIDDEN: dict[int | str, dict[str, Any]] = {
    403: {"model": ErrorResponse, "description": "The API key's scopes, or a limit of this cloud, do not allow it."}
}
TOO_OFTEN: dict[int | str, dict[str, Any]] = {
    429: {
        "model": ErrorResponse,
        "description": "Too many in a short time.",
        "headers": {"Retry-After": {"description": "Seconds until the next.", "schema": {"type": "integer"}}},
    }
}

Limit = Annotated[int, Query(ge=1, le=100, description="Items on the page.")]
# Documented only: an id of another form is answered as one that does not exist.
JobId = Annotated[str, Path(description="A job's id.", json_schema_extra={"pattern": r"^ftjob-[0-9a-f]{24}$"})]


def _after(kind: str) -> Any:
    """The parameter that continues a listing. kind: pattern of the ids that it lists."""
    about = "The last id of the page before."
    return Query(max_length=100, pattern=kind, description=about)


AfterJob = Annotated[str | None, _after(r"^ftjob-[0-9a-f]{24}$")]
AfterEvent = Annotated[str | None, _after(r"^ftevent-[0-9a-f]{24}-[0-9]{1,15}$")]
AfterCheckpoint = Annotated[str | None, _after(r"^ftckpt-[0-9a-f]{24}-[0-9]{1,15}$")]


def add_job_routes(router: APIRouter, jobs: Jobs, teachings: Teachings, caller: Callable[..., str], pace: Pace) -> None:
    """Add the routes under /fine_tuning/jobs. pace: of what writes to the database as often as it is called."""
    routes = APIRouter(prefix="/fine_tuning/jobs", tags=["Fine-tuning"])

    def paced(owner: str = Depends(caller)) -> str:
        pace.check(owner)
        return owner

    _add_create_and_list(routes, jobs, teachings, caller, paced)
    _add_actions(routes, jobs, caller, paced)
    _add_events(routes, jobs, caller)
    router.include_router(routes)


def _add_create_and_list(
    routes: APIRouter, jobs: Jobs, teachings: Teachings, caller: Callable[..., str], paced: Callable[..., str]
) -> None:
    @routes.post(
        "",
        summary="Create a job",
        response_model=JobObject,
        responses={404: {"model": ErrorResponse, "description": "This cloud does not offer the model."}}
        | FORBIDDEN
        | {409: {"model": ErrorResponse, "description": "The Idempotency-Key was used for another request."}}
        | {507: {"model": ErrorResponse, "description": "Your jobs take all the room that this cloud allows you."}}
        | TOO_OFTEN,
    )
    def create_job(
        request: CreateJobRequest,
        owner: str = Depends(paced),
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1, max_length=255, description="A repeated request with the same key creates no second job."
            ),
        ] = None,
    ) -> dict[str, Any]:
        """Queue a job. It runs when the device that holds `device://NAME` connects: `privtune agent` there."""
        spec = to_spec(request)
        jobs.limits.check_model(owner, spec.model)
        jobs.limits.check_stored(owner)
        teachings.catalog.check(spec)
        teachings.check_job(owner, spec)
        return job_object(jobs.create(owner, spec, idempotency_key=idempotency_key, metadata=request.metadata))

    @routes.get("", summary="List jobs", response_model=JobPage, responses=_NOT_FOUND)
    def list_jobs(
        http: Request,
        after: AfterJob = None,
        limit: Limit = 20,
        status: Annotated[list[Status] | None, Query(description="Only jobs in these states; repeatable.")] = None,
        owner: str = Depends(caller),
    ) -> dict[str, Any]:
        """Your jobs, newest first. `metadata[KEY]=VALUE` selects those with that pair."""
        pairs = ((_METADATA.match(name), value) for name, value in http.query_params.items())
        wanted = {match.group(1): value for match, value in pairs if match}
        page = jobs.list(owner, after=after, limit=limit, status=status, metadata=wanted)
        return list_object([job_object(job) for job in page.items], page.has_more)

    @routes.get("/{job_id}", summary="Show a job", response_model=JobObject, responses=_NOT_FOUND)
    def get_job(job_id: JobId, owner: str = Depends(caller)) -> dict[str, Any]:
        """Its state, the reason for it, and progress."""
        return job_object(jobs.get(job_id, owner))


def _add_actions(routes: APIRouter, jobs: Jobs, caller: Callable[..., str], paced: Callable[..., str]) -> None:
    responses = _NOT_FOUND | _CONFLICT

    @routes.post("/{job_id}/cancel", summary="Cancel a job", response_model=JobObject, responses=responses)
    def cancel_job(job_id: JobId, owner: str = Depends(caller)) -> dict[str, Any]:
        """End the job: at once, or at the next step boundary if it runs, in seconds at most. Checkpoints are kept."""
        return job_object(jobs.cancel(job_id, owner))

    @routes.post("/{job_id}/pause", summary="Pause a job", response_model=JobObject, responses=responses | TOO_OFTEN)
    def pause_job(job_id: JobId, owner: str = Depends(paced)) -> dict[str, Any]:
        """Hold the job until `resume`: at once, or from the next step boundary if it runs."""
        return job_object(jobs.pause(job_id, owner))

    @routes.post("/{job_id}/resume", summary="Resume a job", response_model=JobObject, responses=responses | TOO_OFTEN)
    def resume_job(job_id: JobId, owner: str = Depends(paced)) -> dict[str, Any]:
        """Let a paused job continue from its last checkpoint once its device connects."""
        return job_object(jobs.resume(job_id, owner))

    @routes.post(
        "/{job_id}/release",
        summary="Take a job from its device",
        response_model=JobObject,
        responses=responses | TOO_OFTEN,
    )
    def release_job(job_id: JobId, owner: str = Depends(paced)) -> dict[str, Any]:
        """End its session, if it has one, and let another device begin the job again, for example after a loss."""
        return job_object(jobs.leases.release(job_id, owner))


def _add_events(routes: APIRouter, jobs: Jobs, caller: Callable[..., str]) -> None:
    @routes.get("/{job_id}/events", summary="List events", response_model=EventPage, responses=_NOT_FOUND)
    def list_events(
        job_id: JobId,
        after: AfterEvent = None,
        limit: Limit = 20,
        order: Annotated[Literal["asc", "desc"], Query(description="desc: newest first.")] = "desc",
        owner: str = Depends(caller),
    ) -> dict[str, Any]:
        """What happened to the job, newest first unless `order=asc`."""
        job = jobs.get(job_id, owner)
        seq = number_of(after, job.id, "ftevent") if after else 0
        if after and seq == 0:
            return list_object([], False)
        page = jobs.events(job.id, after=seq, limit=limit, newest_first=order == "desc")
        return list_object([event_object(event) for event in page.items], page.has_more)

    @routes.get(
        "/{job_id}/checkpoints", summary="List checkpoints", response_model=CheckpointPage, responses=_NOT_FOUND
    )
    def list_checkpoints(
        job_id: JobId, after: AfterCheckpoint = None, limit: Limit = 10, owner: str = Depends(caller)
    ) -> dict[str, Any]:
        """Steps from which the job can resume, newest first."""
        job = jobs.get(job_id, owner)
        step = number_of(after, job.id, "ftckpt") if after else None
        page = jobs.checkpoints(job.id, after=step, limit=limit)
        return list_object([checkpoint_object(job, item) for item in page.items], page.has_more)

    @routes.get(
        "/{job_id}/events/stream",
        summary="Follow events (SSE)",
        response_class=EventSourceResponse,
        responses=_NOT_FOUND
        | FORBIDDEN
        | {
            200: {"description": "Server-sent events; `id` is the event's id.", "content": {"text/event-stream": {}}},
            204: {"description": "The job has ended and all events were delivered; do not reconnect."},
        },
    )
    async def stream_events(
        request: Request,
        job_id: JobId,
        last_event_id: Annotated[str | None, Header(max_length=100, description="Continue after this event.")] = None,
        after: AfterEvent = None,
        owner: str = Depends(caller),
    ) -> Response:
        """Events as they happen, oldest first, from the first or after `Last-Event-ID`; ends with the job."""
        job = await asyncio.to_thread(jobs.get, job_id, owner)
        cursor = last_event_id or after
        seq = number_of(cursor, job.id, "ftevent") if cursor else 0
        if job.final and not (await asyncio.to_thread(jobs.events, job.id, after=seq, limit=1)).items:
            return Response(status_code=204)
        with jobs.subscribe(job.id, owner):
            pass  # over the limit, refuse while the response can still carry an error status
        response: Response = EventSourceResponse(
            _follow(jobs, job, seq, owner, lambda: caller(request, None)), ping=_PING_S
        )
        return response


async def _follow(
    jobs: Jobs, job: Job, seq: int, owner: str, check_key: Callable[[], str]
) -> AsyncIterator[ServerSentEvent]:
    """Every event after `seq` until the job has ended or is deleted, the key has ended, or the server stops.

    Subscribes first, so none is missed.
    """
    with suppress(Unauthenticated, JobNotFound), jobs.subscribe(job.id, owner) as news:
        while not news.closed:
            await asyncio.to_thread(check_key)
            # The state is read before the events: once a job has ended, no event comes after the ones read next.
            ended = (await asyncio.to_thread(jobs.get, job.id)).final
            page = await asyncio.to_thread(jobs.events, job.id, after=seq, limit=_BATCH)
            for event in page.items:
                seq = event.seq
                data = json.dumps(event_object(event), ensure_ascii=False)
                yield ServerSentEvent(data=data, id=event_id(job.id, seq), event="fine_tuning.job.event")
            if ended and not page.has_more:
                return
            while not (page.has_more or news.closed or await news.wait(KEY_CHECK_S)):
                await asyncio.to_thread(check_key)
