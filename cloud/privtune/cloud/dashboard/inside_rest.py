"""REST, asked inside this process: the same application, middleware and limits that a program on the network meets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.types import ASGIApp, Message


@dataclass(frozen=True)
class Refused(Exception):
    """REST's refusal.

    status: of HTTP.
    message: for people, as REST words it.
    retry_after: seconds, as the header says; "" without one.
    """

    status: int
    message: str
    retry_after: str = ""


@dataclass(frozen=True)
class Rest:
    """REST for one request of a browser, with its user's API key.

    app: what serves `/v1`.
    request: the browser's; the audit log shows its address.
    """

    app: ASGIApp
    request: Request
    key: str = field(repr=False)

    async def get(self, *path: str, **query: Any) -> dict[str, Any]:
        """The answer to GET /v1/PATH. path: its parts, escaped here. Raises Refused."""
        return await self._call("GET", path, query=query)

    async def post(
        self, *path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The answer to POST. Raises Refused."""
        return await self._call("POST", path, body=body, headers=headers)

    async def delete(self, *path: str) -> dict[str, Any]:
        """The answer to DELETE. Raises Refused."""
        return await self._call("DELETE", path)

    async def _call(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        payload = b"" if body is None else json.dumps(body).encode()
        given = {
            "authorization": f"Bearer {self.key}",
            "accept": "application/json",
            "content-type": "application/json",
            "content-length": str(len(payload)),
        } | dict(headers or {})
        raw = "/v1/" + "/".join(quote(part, safe="") for part in path)
        scope = {name: self.request.scope.get(name) for name in ("client", "server", "scheme", "http_version")} | {
            "type": "http",
            "asgi": {"version": "3.0"},
            "method": method,
            "path": "/v1/" + "/".join(path),
            "raw_path": raw.encode(),
            "query_string": urlencode(query or {}).encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in given.items()],
        }
        sent, parts, start = False, [], dict[str, Any]()

        async def receive() -> Message:
            nonlocal sent
            if sent:
                return {"type": "http.disconnect"}
            sent = True
            return {"type": "http.request", "body": payload, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        await self.app(scope, receive, send)
        answer: dict[str, Any] = json.loads(b"".join(parts) or b"{}")
        if start["status"] < 400:
            return answer
        wait = next((value.decode() for name, value in start["headers"] if name == b"retry-after"), "")
        raise Refused(start["status"], answer.get("error", {}).get("message", "The cloud refused this."), wait)
