"""Who may use the endpoint: programs on this machine, or whoever has the key; never a web page.

A browser lets any page send requests to this machine. A page of another origin is recognised by `Origin`; a page whose
name was made to point here (DNS rebinding) by its own name in `Host`. Both are refused, and no CORS headers are sent.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from privtune.device.endpoint.openai_errors import respond
from privtune.shared.addresses import is_loopback
from privtune.shared.errors import InvalidInput, MessageTooLarge, PermissionDenied, PrivTuneError, Unauthenticated

MAX_BODY_BYTES = 16 << 20


class Guard:
    """ASGI middleware. key: the bearer token that clients must present; None: no token is needed."""

    def __init__(self, app: ASGIApp, key: str | None, *, loopback_only: bool) -> None:
        self.app, self._key, self._loopback_only = app, key, loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope))
        if refusal is not None:
            await respond(refusal)(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise MessageTooLarge(f"The request is larger than {MAX_BODY_BYTES >> 20} MiB.")
            return message

        await self.app(scope, bounded, send)

    def _refusal(self, headers: Headers) -> PrivTuneError | None:
        host = headers.get("host", "")
        if self._loopback_only and not is_loopback(host):
            return PermissionDenied(
                "This endpoint answers to localhost, 127.0.0.1 and [::1] only; the Host header has another name."
            )
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return PermissionDenied("This endpoint does not answer web pages of other origins.")
        if self._key is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._key.encode()):
                return Unauthenticated("The key of this endpoint is missing or wrong (PRIVTUNE_ENDPOINT_KEY).")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return InvalidInput("The Content-Length header is not a number.")
        if len(length) > 18 or int(length) > MAX_BODY_BYTES:
            return MessageTooLarge(f"The request is larger than {MAX_BODY_BYTES >> 20} MiB.")
        return None
