"""The routes of API keys: an owner makes, rotates and revokes its own, with a key that has the scope `admin`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, Field

from privtune.cloud.api.convert import list_object
from privtune.cloud.api.job_routes import FORBIDDEN, TOO_OFTEN
from privtune.cloud.api.pace import Pace
from privtune.cloud.api.requests import StrictRequest
from privtune.cloud.api.responses import ErrorResponse, ListPage
from privtune.cloud.auth import ApiKeys
from privtune.cloud.auth.key_rows import DEFAULT_SCOPES, MAX_LIFE_S, ApiKey, Scope
from privtune.shared.validation import Typed

_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "You have no such API key."}
}
_CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorResponse, "description": "The key has ended, or was rotated before."}
}
# Documented only: an id of another form is answered as one that does not exist.
_Id = Annotated[str, Path(description="A key's id.", json_schema_extra={"pattern": "^(key|boot)-[0-9a-f]{16}$"})]
_LIFE = Field(None, ge=1, le=MAX_LIFE_S, description="Seconds until it ends by itself.")


class CreateKeyRequest(StrictRequest, Typed):
    """A new API key of the same owner."""

    label: str = Field("", max_length=128, description="Where it is used.")
    scopes: list[Scope] = Field(list(DEFAULT_SCOPES), min_length=1, max_length=8, description="What it may do.")
    expires_in_s: int | None = _LIFE


class RotateKeyRequest(StrictRequest, Typed):
    """A new secret for the same purpose."""

    overlap_s: int = Field(0, ge=0, le=MAX_LIFE_S, description="Seconds for which the old secret still works.")
    expires_in_s: int | None = Field(None, ge=1, le=MAX_LIFE_S, description="As of a new key; default: the old one's.")


class KeyObject(BaseModel):
    """An API key without its secret. Times in seconds since 1970."""

    id: str = Field(examples=["key-5f0f6c2e9d7a4b1c"])
    object: Literal["privtune.api_key"]
    owner: str
    label: str
    display: str = Field(description="The secret's beginning.")
    scopes: list[Scope]
    created_at: int
    last_used_at: int | None = Field(description="To the minute.")
    expires_at: int | None
    revoked_at: int | None
    replaced_by: str | None = Field(description="The key that it was rotated to.")


class NewKeyObject(KeyObject):
    """A new API key. The secret is shown this once."""

    secret: str


class KeyPage(ListPage):
    """All keys."""

    data: list[KeyObject]


def add_key_routes(router: APIRouter, keys: ApiKeys, administrator: Callable[..., str], pace: Pace) -> None:
    """Add the routes under /privtune/keys. administrator: the owner of a key that may manage keys."""
    routes = APIRouter(prefix="/privtune/keys", tags=["API keys"])

    def paced(owner: str = Depends(administrator)) -> str:
        pace.check(owner)
        return owner

    @routes.get("", summary="List API keys", response_model=KeyPage)
    def list_keys(owner: str = Depends(administrator)) -> dict[str, Any]:
        """All of yours, oldest first; of those that have ended, the newest."""
        return list_object([key_object(key) for key in keys.list(owner)], False)

    @routes.post("", summary="Create an API key", response_model=NewKeyObject, responses=FORBIDDEN | TOO_OFTEN)
    def create_key(request: CreateKeyRequest, owner: str = Depends(paced)) -> dict[str, Any]:
        """A key of yours; its secret is in the answer and nowhere else."""
        made = keys.create(owner, request.label, scopes=request.scopes, expires_in_s=request.expires_in_s)
        return key_object(made.key) | {"secret": made.secret}

    @routes.post(
        "/{key_id}/rotate",
        summary="Rotate an API key",
        response_model=NewKeyObject,
        responses=_NOT_FOUND | _CONFLICT | FORBIDDEN | TOO_OFTEN,
    )
    def rotate_key(key_id: _Id, request: RotateKeyRequest, owner: str = Depends(paced)) -> dict[str, Any]:
        """A new key with the label and scopes of this one, which ends at once or after `overlap_s`."""
        made = keys.rotate(key_id, owner, overlap_s=request.overlap_s, expires_in_s=request.expires_in_s)
        return key_object(made.key) | {"secret": made.secret}

    @routes.post("/{key_id}/revoke", summary="Revoke an API key", response_model=KeyObject, responses=_NOT_FOUND)
    def revoke_key(key_id: _Id, owner: str = Depends(administrator)) -> dict[str, Any]:
        """End it now; its open streams end within seconds."""
        return key_object(keys.revoke(key_id, owner))

    router.include_router(routes)


def key_object(key: ApiKey) -> dict[str, Any]:
    """`privtune.api_key`."""
    names = ("id", "owner", "label", "display", "created_at", "last_used_at", "expires_at", "revoked_at", "replaced_by")
    fields = {name: getattr(key, name) for name in names}
    return fields | {"object": "privtune.api_key", "scopes": list(key.scopes)}
