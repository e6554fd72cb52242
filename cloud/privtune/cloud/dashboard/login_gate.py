"""What every request passes: is somebody logged in, does a change come from our own page, how is a refusal shown."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from privtune.cloud.dashboard.inside_rest import Refused, Rest
from privtune.cloud.dashboard.sessions import LIFE_S, Session, Sessions
from privtune.cloud.dashboard.visit import ROOT, Visit, form_of, page
from privtune.shared.web.headers import PAGE_HEADERS, same_site

Page = Callable[[Visit], Awaitable[Response]]
_STRANGE = "This did not come from a page of this dashboard, so nothing was done. Open the page again."


class Gate:
    """Sessions in front of the pages. app: what serves REST."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self.sessions = app, Sessions()

    def behind(self, show: Page) -> Callable[[Request], Awaitable[Response]]:
        """A page for those who are logged in; others are sent to log in."""

        async def answer(request: Request) -> Response:
            secret = request.cookies.get(cookie_name(request), "")
            session = self.sessions.find(secret)
            if session is None:
                return _to_login(request)
            try:
                visit = Visit(request, session, Rest(self._app, request, session.key))
                if request.method == "POST":
                    visit = Visit(request, session, visit.rest, await self._own_form(request, session.form_token))
                return await show(visit)
            except Refused as refused:
                if refused.status == HTTPStatus.UNAUTHORIZED:  # the key has ended meanwhile
                    self.sessions.close(secret)
                    return page("login.html", 401, message=refused.message)
                return shown(refused, session)

        return answer

    async def log_in(self, request: Request) -> Response:
        """Exchange an API key for a session."""
        if request.method == "GET":
            return page("login.html", message="")
        try:
            _check_origin(request)
            key = str((await form_of(request)).get("key", "")).strip()
            facts = await Rest(self._app, request, key).get("privtune", "key")
        except Refused as refused:
            return page("login.html", refused.status, message=refused.message)
        self.sessions.close(request.cookies.get(cookie_name(request), ""))
        answer = RedirectResponse(f"{ROOT}/", 303)
        answer.set_cookie(
            cookie_name(request),
            self.sessions.open(key, facts),
            max_age=int(LIFE_S),
            path=ROOT,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return answer

    async def log_out(self, visit: Visit) -> Response:
        """End the session."""
        name = cookie_name(visit.request)
        self.sessions.close(visit.request.cookies[name])
        answer = RedirectResponse(f"{ROOT}/login", 303)
        answer.delete_cookie(name, path=ROOT, secure=visit.request.url.scheme == "https", httponly=True)
        return answer

    async def _own_form(self, request: Request, token: str) -> FormData:
        _check_origin(request)
        form = await form_of(request)
        if not hmac.compare_digest(str(form.get("form_token", "")).encode(), token.encode()):
            raise Refused(403, _STRANGE)
        return form


def _check_origin(request: Request) -> None:
    if not same_site(dict(request.headers)):
        raise Refused(403, _STRANGE)


def cookie_name(request: Request) -> str:
    """Of the session's cookie; over TLS with the prefix that keeps other sites from setting it in clear text."""
    return "__Secure-privtune" if request.url.scheme == "https" else "privtune"


def _to_login(request: Request) -> Response:
    if "x-part" in request.headers:  # a part of an open page: the whole page has to go
        return Response(headers={"x-go": f"{ROOT}/login"})
    return RedirectResponse(f"{ROOT}/login", 303)


def shown(refused: Refused, session: Session | None) -> Response:
    """REST's refusal as a page."""
    title = HTTPStatus(refused.status).phrase
    answer = page("refused.html", refused.status, session, message=refused.message, title=title)
    if refused.retry_after:
        answer.headers["retry-after"] = refused.retry_after
    return answer


async def not_there(request: Request, error: Exception) -> Response:
    """No page has this address."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    return shown(Refused(status, "There is no such page."), None)


async def broken(request: Request, error: Exception) -> Response:
    """A defect; Starlette raises it once more, for the log."""
    return shown(Refused(500, "An unexpected failure in the cloud; its operator finds the details in the log."), None)


class Headers:
    """ASGI middleware: what browsers may do with our pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the headers that an answer does not have."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                more = ((name.encode(), value.encode()) for name, value in PAGE_HEADERS.items())
                message["headers"] = [*message["headers"], *(one for one in more if one[0] not in there)]
            await send(message)

        await self._app(scope, receive, sending)
