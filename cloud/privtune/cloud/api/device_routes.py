"""The routes of enrolled devices: how one gets in, with a token, and how their owner sees and revokes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Path
from pydantic import BaseModel, Field

from privtune.cloud.api.convert import list_object
from privtune.cloud.api.requests import StrictRequest
from privtune.cloud.api.responses import ErrorResponse, ListPage
from privtune.cloud.auth import Devices
from privtune.cloud.auth.device_rows import Device
from privtune.shared.validation import Typed

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "You have no such device."}}
_REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The signing request can't be signed."},
    401: {"model": ErrorResponse, "description": "The token is not known, is used or has expired."},
    403: {"model": ErrorResponse, "description": "The owner has as many devices as it may have."},
    "default": {"model": ErrorResponse, "description": "Any other error."},  # else FastAPI adds its own 422
}
# Documented only: an id of another form is answered as one that does not exist.
_Id = Annotated[str, Path(description="A device's id.", json_schema_extra={"pattern": "^dev-[0-9a-f]{16}$"})]


class EnrolRequest(StrictRequest, Typed):
    """What a device shows to get in."""

    token: str = Field(min_length=1, max_length=256, description="`privtune-cloud devices token` prints it.")
    csr: str = Field(
        min_length=1, max_length=4096, description="A signing request (PEM) for a P-256 key. Only the key is taken."
    )


class AuthorityObject(BaseModel):
    """The cloud's private authority. Whoever reads it compares its SHA-256 with what it knows."""

    object: Literal["privtune.authority"]
    certificate: str = Field(description="PEM.")


class EnrolledObject(BaseModel):
    """A device's first certificate."""

    object: Literal["privtune.enrolment"]
    device_id: str
    owner: str
    certificate: str = Field(description="PEM.")
    life_s: int = Field(description="Seconds that it lasts from now on.")


class DeviceObject(BaseModel):
    """An enrolled device. Times in seconds since 1970."""

    id: str = Field(examples=["dev-5f0f6c2e9d7a4b1c"])
    object: Literal["privtune.device"]
    label: str
    enrolled_at: int
    last_seen_at: int | None = Field(description="To the minute.")
    expires_at: int = Field(description="When its newest certificate ends.")
    revoked_at: int | None


class DevicePage(ListPage):
    """All devices."""

    data: list[DeviceObject]


def add_enrolment_routes(app: FastAPI, devices: Devices) -> None:
    """Add the two routes that need no key: what a device asks before it has an identity."""
    routes = APIRouter(prefix="/v1/privtune/enrolment", tags=["Devices"])

    @routes.get("", summary="The cloud's authority", response_model=AuthorityObject)
    def get_authority() -> dict[str, Any]:
        """A device compares its SHA-256 with the first part of its token, and trusts nothing else from then on."""
        return {"object": "privtune.authority", "certificate": devices.authority.pem.decode()}

    @routes.post("", summary="Enrol a device", response_model=EnrolledObject, responses=_REFUSED)
    def enrol(request: EnrolRequest) -> dict[str, Any]:
        """A token lets one device in. The same key may ask again with it, because the answer may have been lost."""
        made = devices.enrol(request.token, request.csr)
        return {
            "object": "privtune.enrolment",
            "device_id": made.device.id,
            "owner": made.device.owner,
            "certificate": made.certificate.decode(),
            "life_s": made.life_s,
        }

    app.include_router(routes)


def add_device_routes(router: APIRouter, devices: Devices, administrator: Callable[..., str]) -> None:
    """Add the routes under /privtune/devices. administrator: the owner of a key that may manage devices."""
    routes = APIRouter(prefix="/privtune/devices", tags=["Devices"])

    @routes.get("", summary="List devices", response_model=DevicePage)
    def list_devices(owner: str = Depends(administrator)) -> dict[str, Any]:
        """All of yours, oldest first; of those that have ended, the newest."""
        return list_object([_device_object(device) for device in devices.list(owner)], False)

    @routes.post("/{device_id}/revoke", summary="Revoke a device", response_model=DeviceObject, responses=_NOT_FOUND)
    def revoke_device(device_id: _Id, owner: str = Depends(administrator)) -> dict[str, Any]:
        """Shut it out now: its streams end, and its jobs wait for another device, within seconds."""
        return _device_object(devices.revoke(device_id, owner))

    router.include_router(routes)


def _device_object(device: Device) -> dict[str, Any]:
    names = ("id", "label", "enrolled_at", "last_seen_at", "expires_at", "revoked_at")
    return {name: getattr(device, name) for name in names} | {"object": "privtune.device"}
