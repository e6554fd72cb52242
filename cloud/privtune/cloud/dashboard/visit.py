"""One request of a browser that is logged in: how its page is made, and what its form said."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from privtune.cloud.dashboard.inside_rest import Refused, Rest
from privtune.cloud.dashboard.sessions import Session
from privtune.cloud.dashboard.words import HEADLINES, TONES
from privtune.shared import __version__
from privtune.shared.web import page_formats
from privtune.shared.web.chart import svg
from privtune.shared.wording import counted

ROOT = "/dashboard"
STATIC = files("privtune.shared.web") / "static"
_MAX_FIELDS = 100


@cache
def static_files() -> Mapping[str, bytes]:
    """What browsers load, by name."""
    return {name: (STATIC / name).read_bytes() for name in ("look.css", "live.js")}


@cache
def environment() -> Environment:
    """The templates; every value is escaped."""
    made = Environment(
        loader=PackageLoader("privtune.cloud.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        name: getattr(page_formats, name) for name in ("ago", "duration", "iso", "moment", "number", "size")
    }
    made.filters |= {"counted": counted, "svg": lambda curve: Markup(svg(curve))}
    stamp = hashlib.sha256(b"".join(static_files().values())).hexdigest()[:12]
    made.globals |= {"root": ROOT, "version": __version__, "stamp": stamp, "HEADLINES": HEADLINES, "TONES": TONES}
    return made


def page(template: str, status: int = 200, session: Session | None = None, **values: Any) -> HTMLResponse:
    """A whole page."""
    return HTMLResponse(environment().get_template(template).render(session=session, **values), status)


def to(path: str) -> RedirectResponse:
    """Go on to a page of the dashboard."""
    return RedirectResponse(ROOT + path, 303)


async def form_of(request: Request) -> FormData:
    """What a form said. Raises Refused for something else than a form."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        raise Refused(400, "This is not a form.")
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise Refused(400, "The form can't be read.") from None
    return FormData([(name, value) for name, values in fields.items() for value in values])


@dataclass(frozen=True)
class Visit:
    """A request with its session. rest: REST under the session's key."""

    request: Request
    session: Session
    rest: Rest
    form: FormData = field(default_factory=FormData)

    @property
    def id(self) -> str:
        """The id in the path."""
        return str(self.request.path_params["id"])

    def said(self, name: str) -> str:
        """A field of the form, "" where it is empty or missing."""
        return str(self.form.get(name, "")).strip()

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A whole page."""
        return page(template, status, self.session, **values)

    def part(self, template: str, **values: Any) -> str:
        """A part of a page, as text that is escaped already."""
        return environment().get_template(template).render(session=self.session, **values)
