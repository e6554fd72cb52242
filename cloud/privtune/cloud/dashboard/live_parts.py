"""Pages that follow what happens: a page asks again every few seconds, and gets the parts of it that have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from privtune.cloud.dashboard.visit import environment


def poller(request_path: str, parts: Mapping[str, str], every_s: float | None) -> Markup:
    """The element that asks again. every_s: None: no more changes are to come."""
    seen = urlencode({name: _digest(part) for name, part in parts.items()})
    template = environment().get_template("poller.html")
    return Markup(template.render(address=f"{request_path}?{seen}", every_s=every_s))


def changes(request: Request, parts: Mapping[str, str], every_s: float | None) -> HTMLResponse:
    """The answer to the poller: itself, and each part whose digest it did not name."""
    seen = request.query_params
    new = [f'<div id="part-{name}">{part}</div>' for name, part in parts.items() if seen.get(name) != _digest(part)]
    return HTMLResponse("".join([poller(request.url.path, parts, every_s), *new]))


def _digest(part: str) -> str:
    return hashlib.sha256(part.encode()).hexdigest()[:16]
