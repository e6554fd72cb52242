"""The route of the audit log: what was done to an owner's things, for a key that has the scope `admin`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from privtune.cloud.api.convert import list_object
from privtune.cloud.api.responses import ListPage
from privtune.cloud.audit_log.check import AuditEntry
from privtune.cloud.auth import ApiKeys

_BY_OTHERS = ("operator", "cloud")


class AuditEntryObject(BaseModel):
    """An administrative act."""

    id: str = Field(description="The number of the act among all on this cloud, from 1.", examples=["17"])
    object: Literal["privtune.audit_entry"]
    created_at: int
    who: str = Field(description="The id of an API key, `operator`, or `cloud` for what it does by itself.")
    origin: str | None = Field(description="The network address that the key came from.")
    action: str = Field(examples=["key.created"])
    target: str = Field(description="The id of what it was done to.")
    detail: dict[str, Any]
    sha256: str = Field(description="Of this entry and all before it; note it where the operator can't write.")


class AuditPage(ListPage):
    """Entries, oldest first."""

    data: list[AuditEntryObject]


def add_audit_routes(router: APIRouter, keys: ApiKeys, administrator: Callable[..., str]) -> None:
    """Add the route. administrator: the owner of a key that may manage keys."""

    @router.get("/privtune/audit-log", tags=["API keys"], summary="Read the audit log", response_model=AuditPage)
    def audit_log(
        after: Annotated[int, Query(ge=0, le=2**53, description="Only entries of higher numbers.")] = 0,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        owner: str = Depends(administrator),
    ) -> dict[str, Any]:
        """Administrative acts on what is yours: keys, limits, deletions, jobs taken from devices, homes."""
        found = keys.acts(owner, after=after, limit=limit + 1)
        return list_object([_entry_object(entry) for entry in found[:limit]], len(found) > limit)


def _entry_object(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": str(entry.number),
        "object": "privtune.audit_entry",
        "created_at": entry.at,
        "who": entry.who,
        "origin": None if entry.who in _BY_OTHERS else entry.origin,
        "action": entry.action,
        "target": entry.target,
        "detail": entry.detail,
        "sha256": entry.sha256,
    }
