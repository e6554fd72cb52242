"""Where the dashboard is: its addresses, and `/`, which leads to them or says that there is none."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from privtune.cloud.dashboard.login_gate import Gate, Headers, Page, broken, not_there
from privtune.cloud.dashboard.pages import devices_page, job_page, keys_page, overview_page, submit_page
from privtune.cloud.dashboard.visit import ROOT, static_files
from privtune.shared.web.headers import STATIC_HEADERS

PAGES: tuple[tuple[str, str, Page], ...] = (
    ("GET", "/", overview_page.overview),
    ("GET", "/live", overview_page.overview_live),
    ("GET", "/new", submit_page.form),
    ("POST", "/new", submit_page.create),
    ("GET", "/jobs/{id}", job_page.show),
    ("GET", "/jobs/{id}/live", job_page.live),
    ("POST", "/jobs/{id}/pause", job_page.pause),
    ("POST", "/jobs/{id}/resume", job_page.resume),
    ("POST", "/jobs/{id}/cancel", job_page.cancel),
    ("POST", "/jobs/{id}/release", job_page.release),
    ("POST", "/jobs/{id}/delete", job_page.delete),
    ("GET", "/keys", keys_page.show),
    ("POST", "/keys", keys_page.create),
    ("POST", "/keys/{id}/rotate", keys_page.rotate),
    ("POST", "/keys/{id}/revoke", keys_page.revoke),
    ("GET", "/devices", devices_page.show),
    ("POST", "/devices/{id}/revoke", devices_page.revoke),
)
_OFF = "PrivTune cloud: the dashboard is off (--no-dashboard). REST is described at /docs.\n"
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


def add_dashboard(app: Starlette, *, on: bool = True) -> None:
    """Add the dashboard to the application that serves REST; off, `/` says so."""

    def front(_: Request) -> Response:
        return RedirectResponse(f"{ROOT}/") if on else PlainTextResponse(_OFF)

    app.router.routes.append(Route("/", front))
    if not on:
        return
    gate = Gate(app)
    routes = [Route(path, gate.behind(show), methods=[method]) for method, path, show in PAGES]
    routes += [
        Route("/login", gate.log_in, methods=["GET", "POST"]),
        Route("/logout", gate.behind(gate.log_out), methods=["POST"]),
        Route("/static/{name}", _static),
    ]
    pages = Starlette(routes=routes, exception_handlers={HTTPException: not_there, Exception: broken})
    app.router.routes.append(Mount(ROOT, Headers(pages)))


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in static_files():
        raise HTTPException(404)
    return Response(static_files()[name], media_type=_TYPES[name.rpartition(".")[2]], headers=STATIC_HEADERS)
