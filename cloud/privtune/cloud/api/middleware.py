"""Around every request: an id, one log line, and a limit on the body that holds whatever its headers claim."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from privtune.cloud.api.error_responses import respond
from privtune.cloud.audit_log.record import acting_from
from privtune.shared.errors import InvalidInput, MessageTooLarge, PrivTuneError

log = logging.getLogger("privtune.cloud.access")

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
# This route refuses uploads for a reason of its own and reads no body.
_UNREAD = "/v1/files"
BODY_S = 30.0  # for a whole body, from when the route asks for it


class Envelope:
    """ASGI middleware. Raises MessageTooLarge inside the app when a body exceeds `max_bytes`."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, began, status = _request_id(scope), time.perf_counter(), 500
        client = (scope.get("client") or ("?",))[0]
        acting_from(client)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            await self._bounded(scope, receive, sending)
        finally:
            facts = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * (time.perf_counter() - began)),
                "request": request_id,
                "client": client,
            }
            level = logging.DEBUG if scope["path"] in ("/healthz", "/readyz", "/metrics") else logging.INFO
            log.log(level, "request", extra=facts)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].rstrip("/") == _UNREAD:
            await self.app(scope, receive, send)
            return
        too_large = MessageTooLarge(f"The request is larger than the {self.max_bytes} bytes that this cloud reads.")
        length = Headers(scope=scope).get("content-length", "0")
        refusal: PrivTuneError | None = None
        if not length.isdecimal():
            refusal = InvalidInput("The Content-Length header is not a number.")
        elif len(length) > 18 or int(length) > self.max_bytes:
            refusal = too_large
        if refusal is not None:
            await respond(Request(scope), refusal)(scope, receive, send)
            return
        seen, whole, until = 0, False, 0.0

        async def receiving() -> Message:
            nonlocal seen, whole, until
            until = until or time.monotonic() + BODY_S
            try:
                message = await asyncio.wait_for(receive(), None if whole else max(0.0, until - time.monotonic()))
            except TimeoutError:
                raise InvalidInput(f"The request's body did not come within {BODY_S:.0f} seconds.") from None
            whole = whole or not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise too_large
            return message

        await self.app(scope, receiving, send)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.match(given) else f"req-{secrets.token_hex(8)}"
