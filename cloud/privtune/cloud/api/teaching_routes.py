"""The routes of teachings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field

from privtune.cloud.api.convert import list_object
from privtune.cloud.api.job_routes import FORBIDDEN, TOO_OFTEN, Limit
from privtune.cloud.api.pace import Pace
from privtune.cloud.api.requests import CreateTeachingRequest
from privtune.cloud.api.responses import ErrorResponse, ListPage
from privtune.cloud.jobs.teaching_rows import Teaching, TeachingStatus
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.limits import OwnerLimits
from privtune.shared.job_spec import TEACHING_ID
from privtune.shared.teaching_spec import TeachingSpec

_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "This API key has no such teaching."}
}
# Documented only: an id of another form is answered as one that does not exist.
_Id = Annotated[str, Path(description="A teaching's id.", json_schema_extra={"pattern": TEACHING_ID})]
_After = Annotated[
    str | None, Query(max_length=100, pattern=TEACHING_ID, description="The last id of the page before.")
]


class TeachingProgress(BaseModel):
    """How far a teaching is: in one of its stages, tuning, states, teaching."""

    stage: str | None = None
    step: int = 0
    steps: int = 0
    loss: float | None = None
    updated_at: int | None = None


class TeachingError(BaseModel):
    """Why a teaching failed."""

    code: str
    message: str


class TeachingObject(BaseModel):
    """A teaching. A job uses its blocks as `privtune.taught`, once it has succeeded."""

    id: str = Field(examples=["teach-5f0f6c2e9d7a4b1c8e3d2a10"])
    object: Literal["privtune.teaching"]
    created_at: int
    started_at: int | None
    finished_at: int | None
    status: TeachingStatus
    reason: str = Field(description="Why it is in this state, for people.")
    spec: TeachingSpec
    progress: TeachingProgress
    card: dict[str, Any] | None = Field(
        description="What was taught: text with its hash, settings, losses on text held out, seconds."
    )
    current: bool = Field(
        description="It has succeeded, and the model's files are those that taught: a job can use its blocks."
    )
    error: TeachingError | None


class DeletedTeaching(BaseModel):
    """A teaching that is no more."""

    id: str
    object: Literal["privtune.teaching"]
    deleted: Literal[True]


class TeachingPage(ListPage):
    """A page of teachings."""

    data: list[TeachingObject]


class CorpusObject(BaseModel):
    """Public text that a teaching may name."""

    id: str
    object: Literal["privtune.corpus"]


class CorpusPage(ListPage):
    """All corpora."""

    data: list[CorpusObject]


def add_teaching_routes(
    router: APIRouter, teachings: Teachings, limits: OwnerLimits, caller: Callable[..., str], pace: Pace
) -> None:
    """Add the routes under /privtune/teachings, and that of the corpora. pace: of what writes to the database."""
    routes = APIRouter(prefix="/privtune", tags=["Teachings"])

    def paced(owner: str = Depends(caller)) -> str:
        pace.check(owner)
        return owner

    @routes.get("/corpora", summary="List corpora", response_model=CorpusPage)
    def list_corpora() -> dict[str, Any]:
        """Every public text that a teaching may name; the operator may allow files of the hub as well."""
        return list_object([{"id": name, "object": "privtune.corpus"} for name in teachings.corpora.names], False)

    @routes.post(
        "/teachings",
        summary="Teach blocks",
        response_model=TeachingObject,
        responses={
            404: {"model": ErrorResponse, "description": "This cloud does not offer the model or the corpus."},
        }
        | FORBIDDEN
        | TOO_OFTEN,
    )
    def create_teaching(request: CreateTeachingRequest, owner: str = Depends(paced)) -> dict[str, Any]:
        """Queue a teaching. What was taught before, with the same model, text and settings, is ready at once."""
        limits.check_model(owner, request.model)
        return teaching_object(teachings.create(owner, TeachingSpec(**request.model_dump())))

    @routes.get("/teachings", summary="List teachings", response_model=TeachingPage, responses=_NOT_FOUND)
    def list_teachings(after: _After = None, limit: Limit = 20, owner: str = Depends(caller)) -> dict[str, Any]:
        """Your teachings, newest first."""
        page = teachings.list(owner, after=after, limit=limit)
        return list_object([teaching_object(one) for one in page.items], page.has_more)

    @routes.get(
        "/teachings/{teaching_id}", summary="Show a teaching", response_model=TeachingObject, responses=_NOT_FOUND
    )
    def get_teaching(teaching_id: _Id, owner: str = Depends(caller)) -> dict[str, Any]:
        """Its state, progress and, at the end, its card."""
        return teaching_object(teachings.get(teaching_id, owner))

    @routes.post(
        "/teachings/{teaching_id}/cancel",
        summary="Cancel a teaching",
        response_model=TeachingObject,
        responses=_NOT_FOUND | {409: {"model": ErrorResponse, "description": "It has ended already."}},
    )
    def cancel_teaching(teaching_id: _Id, owner: str = Depends(caller)) -> dict[str, Any]:
        """End it: at once, or after the present step if it runs."""
        return teaching_object(teachings.cancel(teaching_id, owner))

    @routes.delete(
        "/teachings/{teaching_id}",
        summary="Delete a teaching",
        response_model=DeletedTeaching,
        responses=_NOT_FOUND
        | {409: {"model": ErrorResponse, "description": "It has not ended, or an unfinished job begins with it."}},
    )
    def delete_teaching(teaching_id: _Id, owner: str = Depends(caller)) -> dict[str, Any]:
        """Forget an ended one. Its package goes with it, unless another teaching has the same."""
        teachings.delete(teaching_id, owner)
        return {"id": teaching_id, "object": "privtune.teaching", "deleted": True}

    router.include_router(routes)


def teaching_object(teaching: Teaching) -> dict[str, Any]:
    """`privtune.teaching`."""
    error = {"code": teaching.error_code, "message": teaching.reason} if teaching.error_code else None
    return {
        "id": teaching.id,
        "object": "privtune.teaching",
        "created_at": teaching.created_at,
        "started_at": teaching.started_at,
        "finished_at": teaching.finished_at,
        "status": teaching.status,
        "reason": teaching.reason,
        "spec": teaching.spec.model_dump(mode="json"),
        "progress": teaching.progress,
        "card": teaching.card,
        "current": teaching.current,
        "error": error,
    }
