"""The FastAPI application: its routes, authentication, error responses and documentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from privtune.cloud.api.audit_routes import add_audit_routes
from privtune.cloud.api.convert import list_object, model_object, tuned_job_id, tuned_model_object
from privtune.cloud.api.deletion_routes import add_deletion_routes
from privtune.cloud.api.device_routes import add_device_routes, add_enrolment_routes
from privtune.cloud.api.error_responses import install_error_handlers
from privtune.cloud.api.job_routes import TOO_OFTEN, add_job_routes
from privtune.cloud.api.key_routes import add_key_routes
from privtune.cloud.api.middleware import Envelope
from privtune.cloud.api.pace import Pace
from privtune.cloud.api.requests import LineRequest
from privtune.cloud.api.responses import (
    ErrorResponse,
    FilePage,
    HealthObject,
    InfoObject,
    LineObject,
    ModelObject,
    ModelPage,
)
from privtune.cloud.api.teaching_routes import add_teaching_routes
from privtune.cloud.api.watch_routes import add_watch_routes
from privtune.cloud.auth import ApiKeys, Devices, bearer
from privtune.cloud.auth.key_rows import Scope
from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host_load import HostLoad
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.settings import Settings
from privtune.shared import __version__
from privtune.shared.errors import CloudUnreachable, JobNotFound, ModelNotFound, PermissionDenied, PrivTuneError
from privtune.shared.versions import OURS

_ABOUT = """
Fine-tune a model here on text that stays on its owner's device.

This is the **control plane**: it manages jobs, states and events. The text never comes here; the device sends noised
vectors over gRPC (`GET /v1/privtune/info` says where). The routes are OpenAI's, so the `openai` client works:

```python
client = openai.OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="pt-…")
job = client.fine_tuning.jobs.create(
    model="minilm",
    training_file="device://reviews",  # registered on the device: `privtune agent`
    extra_body={"privtune": {"task": "classification", "cut": 1}},
)
```

Status: `queued` → `running` ⇄ `paused` → `succeeded` | `failed` | `cancelled`; `privtune.phase` and
`privtune.reason` say more. A job whose device is away is `paused` and continues by itself when the device is back.

An API key has scopes: `read` for every GET, `submit` for every other request, `admin` for the owner's API keys,
enrolled devices and audit log, `device` for gRPC. An enrolled device needs no key for gRPC.
"""
_TAGS = [
    {"name": "Fine-tuning", "description": "Jobs, their events and checkpoints."},
    {"name": "Teachings", "description": "Blocks for a device, taught on public text by the whole model."},
    {"name": "API keys", "description": "Your own, with a key that has the scope `admin`."},
    {"name": "Devices", "description": "Devices that have enrolled, and how they do; see `privtune enroll`."},
    {"name": "Models", "description": "What this cloud offers."},
    {"name": "Files", "description": "Text is never uploaded."},
    {"name": "PrivTune", "description": "What a device asks before it connects."},
    {"name": "Health", "description": "For load balancers and containers; no key needed."},
]
_MEANINGS = {
    400: "A field is unknown, missing, contradictory or out of range.",
    401: "No API key, or one that is not known, was revoked or has expired.",
    403: "The API key's scopes do not allow it.",
    413: "The request is too large.",
    422: "The model can't be split or loaded safely.",
    500: "A defect of the cloud.",
}
_bearer_scheme = HTTPBearer(
    auto_error=False, bearerFormat="pt-…", description="An API key: `privtune-cloud keys create`."
)


def create_app(
    jobs: Jobs,
    keys: ApiKeys,
    devices: Devices,
    teachings: Teachings,
    settings: Settings,
    *,
    grpc_port: int | None = None,
    device_port: int | None = None,
    check_ready: Callable[[], None] | None = None,
    loads: Callable[[], Sequence[HostLoad]] = tuple,
) -> FastAPI:
    """The control plane's application.

    grpc_port: where gRPC listens, if the settings leave the choice to the system.
    device_port: where it listens for enrolled devices; None: nowhere.
    check_ready: raises while the cloud can't accept jobs.
    loads: how busy each host is.
    """
    app = FastAPI(
        title="PrivTune cloud",
        version=__version__,
        description=_ABOUT,
        openapi_tags=_TAGS,
        license_info={"name": "Apache-2.0"},
        redoc_url=None,
    )
    install_error_handlers(app)
    app.add_middleware(Envelope, max_bytes=settings.max_request_bytes)

    documented = TOO_OFTEN | {
        status: {"model": ErrorResponse, "description": text} for status, text in _MEANINGS.items()
    }

    def door(scope: Scope | None = None) -> tuple[APIRouter, Callable[..., str]]:
        """A router whose routes need a key with the scope, and a dependency that counts and gives the key's owner.

        scope: None: that of the request's method.
        """

        def caller(request: Request, _: HTTPAuthorizationCredentials | None = Security(_bearer_scheme)) -> str:
            needed = scope or ("read" if request.method in ("GET", "HEAD") else "submit")
            owner = keys.authenticate(bearer(request.headers.get("authorization")), needed).owner
            jobs.limits.count_request(owner)
            return owner

        return APIRouter(prefix="/v1", responses=documented, dependencies=[Depends(caller)]), caller

    (router, caller), (of_keys, administrator) = door(), door("admin")
    pace = Pace(settings.max_changes_per_minute)
    add_job_routes(router, jobs, teachings, caller, pace)
    add_deletion_routes(router, jobs, caller)
    add_watch_routes(router, jobs, keys, caller, loads)
    add_teaching_routes(router, teachings, jobs.limits, caller, pace)
    add_key_routes(of_keys, keys, administrator, pace)
    add_device_routes(of_keys, devices, administrator)
    add_audit_routes(of_keys, keys, administrator)
    _add_model_routes(router, teachings.catalog, jobs, caller)
    _add_file_routes(router)
    _add_info_route(router, settings, settings.grpc_port if grpc_port is None else grpc_port, device_port)
    add_enrolment_routes(app, devices)
    app.include_router(router)
    app.include_router(of_keys)
    _add_health_routes(app, check_ready)
    return app


def _add_model_routes(router: APIRouter, catalog: Catalog, jobs: Jobs, caller: Callable[..., str]) -> None:
    @router.get("/models", tags=["Models"], summary="List models", response_model=ModelPage)
    def list_models(owner: str = Depends(caller)) -> dict[str, Any]:
        """Every model that a job of yours may name, with its possible cuts."""
        mine = jobs.limits.of(owner).models
        cards = (card for card in catalog.cards() if mine is None or card.name in mine)
        return list_object([model_object(card, catalog) for card in cards], False)

    @router.get(
        "/models/{model:path}",
        tags=["Models"],
        summary="Show a model",
        response_model=ModelObject,
        responses={404: {"model": ErrorResponse, "description": "This cloud does not offer it."}},
    )
    def get_model(model: str, owner: str = Depends(caller)) -> dict[str, Any]:
        """One model; also one of the hub, if the operator allows that, and your own tuned ones by their `ft:` names."""
        if not model.startswith("ft:"):
            jobs.limits.check_model(owner, model)
            return model_object(catalog.card(model), catalog)
        unknown = ModelNotFound(f"You have no tuned model {model[:200]!r}.", param="model")
        try:
            job = jobs.get(tuned_job_id(model), owner)
        except JobNotFound:
            raise unknown from None
        if job.tuned_model != model:
            raise unknown
        return tuned_model_object(job, model_object(catalog.card(job.spec.model), catalog))


def _add_file_routes(router: APIRouter) -> None:
    @router.get("/files", tags=["Files"], summary="List files", response_model=FilePage)
    def list_files() -> dict[str, Any]:
        """Always empty: text stays on the device."""
        return list_object([], False)

    @router.post("/files", tags=["Files"], summary="Refused: text stays on the device", status_code=403)
    def upload_file() -> None:
        """Always refused. Register the data set on the device and name it `device://NAME`."""
        raise PermissionDenied(
            "Files are not uploaded here: text stays on the device. Register it there and name it device://NAME.",
            param="file",
        )


def _add_info_route(router: APIRouter, settings: Settings, grpc_port: int, device_port: int | None) -> None:
    @router.get("/privtune/info", tags=["PrivTune"], summary="Versions and the gRPC ports", response_model=InfoObject)
    def info() -> dict[str, Any]:
        """What a device asks first: gRPC listens on the same host, on these ports, with TLS or without."""
        return {
            "object": "privtune.info",
            "version": __version__,
            "protocol_version": OURS.newest,
            "oldest_protocol_version": OURS.oldest,
            "grpc_port": grpc_port,
            "device_port": device_port,
            "requires_enrolment": settings.require_enrolment,
            "tls": settings.tls,
            "max_tensor_bytes": settings.max_tensor_bytes,
        }

    @router.post("/privtune/line", tags=["PrivTune"], summary="Measure the line", response_model=LineObject)
    def line(request: LineRequest) -> dict[str, Any]:
        """Takes padding and answers with as much as is asked for: `privtune plan` times it. Nothing is kept."""
        return {"object": "privtune.line", "padding": "0" * request.answer}


def _add_health_routes(app: FastAPI, check_ready: Callable[[], None] | None) -> None:
    @app.get("/healthz", tags=["Health"], summary="The process answers", response_model=HealthObject)
    def healthz() -> dict[str, str]:
        """Liveness only: does not check the database."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        tags=["Health"],
        summary="The cloud can take jobs",
        response_model=HealthObject,
        responses={503: {"model": ErrorResponse, "description": "The message says what is wrong."}},
    )
    def readyz() -> dict[str, str]:
        """Ready: the database answers, the disk has room, models compute, and no shutdown is under way."""
        try:
            if check_ready is not None:
                check_ready()
        except PrivTuneError as error:
            raise CloudUnreachable(f"The cloud is not ready: {error.message}", detail=error.detail) from error
        return {"status": "ok"}
