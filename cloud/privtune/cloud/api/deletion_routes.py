"""The routes that delete: a job, or the model that it made, which is the same deletion under another name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends

from privtune.cloud.api.convert import tuned_job_id
from privtune.cloud.api.job_routes import JobId
from privtune.cloud.api.responses import DeletedObject, ErrorResponse
from privtune.cloud.jobs.deletions import Receipt
from privtune.cloud.jobs.service import Jobs
from privtune.shared.errors import JobNotFound, ModelNotFound, PermissionDenied


def add_deletion_routes(router: APIRouter, jobs: Jobs, caller: Callable[..., str]) -> None:
    """Add DELETE for jobs and for tuned models."""

    @router.delete(
        "/fine_tuning/jobs/{job_id}",
        tags=["Fine-tuning"],
        summary="Delete a job",
        response_model=DeletedObject,
        responses={
            404: {"model": ErrorResponse, "description": "This API key has no such job, and had none."},
            409: {"model": ErrorResponse, "description": "The job has not ended; cancel it first."},
        },
    )
    def delete_job(job_id: JobId, owner: str = Depends(caller)) -> dict[str, Any]:
        """Delete a job that has ended, with its checkpoints, adapter and events. A repetition gets the same receipt."""
        return _deleted(job_id, "fine_tuning.job", jobs.deletions.delete(job_id, owner))

    @router.delete(
        "/models/{model:path}",
        tags=["Models"],
        summary="Delete a tuned model",
        response_model=DeletedObject,
        responses={
            403: {"model": ErrorResponse, "description": "It is one that the cloud offers."},
            404: {"model": ErrorResponse, "description": "You have no such tuned model."},
        },
    )
    def delete_model(model: str, owner: str = Depends(caller)) -> dict[str, Any]:
        """Delete one of your tuned models by its `ft:` name, and with it the job that made it."""
        if not model.startswith("ft:"):
            raise PermissionDenied("Only your own tuned models, by their ft: names, can be deleted.", param="model")
        job_id = tuned_job_id(model)
        if _name(jobs, job_id, owner) != model:
            raise ModelNotFound(f"You have no tuned model {model[:200]!r}.", param="model")
        return _deleted(model, "model", jobs.deletions.delete(job_id, owner))


def _name(jobs: Jobs, job_id: str, owner: str) -> str | None:
    """The name of the model that a job made, though it may be deleted; None where there is none."""
    try:
        return jobs.get(job_id, owner).tuned_model
    except JobNotFound:
        pass
    try:
        return jobs.deletions.receipt(job_id, owner).model
    except JobNotFound:
        return None


def _deleted(name: str, kind: str, receipt: Receipt) -> dict[str, Any]:
    return {"id": name, "object": kind, "deleted": True, "privtune": asdict(receipt)}
