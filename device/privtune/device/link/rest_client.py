"""One cloud's REST API as this device calls it: bounded answers, whose texts are printable, and errors of the table.

The cloud's answers are untrusted: every text of an answer loses its control characters as it arrives (`_answer`),
because it may reach a terminal.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx
from tenacity import stop_after_attempt

from privtune.device.link.trust import proxy_of
from privtune.shared.addresses import is_loopback
from privtune.shared.errors import (
    CloudUnreachable,
    InternalError,
    InvalidInput,
    JobConflict,
    JobNotFound,
    MessageTooLarge,
    PermissionDenied,
    PrivTuneError,
    Unauthenticated,
    VersionMismatch,
    all_errors,
    by_reason,
)
from privtune.shared.printable import printable, printable_json
from privtune.shared.retry import retrying

TIMEOUT_S = 30.0  # of one wait for the server
TOTAL_S = 120.0  # of one attempt
MAX_ANSWER_BYTES = 4 << 20
ATTEMPTS = 3  # at a request that no server has answered
FIRST_WAIT_S = 0.5
UNTRUSTED = "Check the address; for a cloud with its own authority, give its file with --ca-cert."

# For answers without our own error body, from a proxy in between or another server.
_BY_STATUS: dict[int, type[PrivTuneError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: PermissionDenied,
    404: JobNotFound,
    409: JobConflict,
    413: MessageTooLarge,
    422: InvalidInput,
}
_REASONS = {kind.reason for kind in all_errors()}
Json = dict[str, Any]


class RestClient:
    """Use as a context manager, or call `close`.

    Args:
        base_url: `https://host[:port]`; `http://` for this machine only.
        tls: whom to trust; None: nobody is asked who it is, so nothing secret may be sent.
        headers: of every request.
        untrusted: what to do about a server that is not trusted.

    Raises InvalidInput for a wrong address. Every call raises the cloud's refusal as the error of its reason,
    CloudUnreachable without an answer, and VersionMismatch for an answer that is not a PrivTune cloud's.
    """

    def __init__(
        self, base_url: str, tls: ssl.SSLContext | None, headers: Mapping[str, str], untrusted: str = UNTRUSTED
    ) -> None:
        url = checked_url(base_url)
        self.url = str(url).rstrip("/")
        self.host = url.host
        self._untrusted = untrusted
        self._http = httpx.Client(
            base_url=self.url,
            headers={
                **headers,
                "Accept": "application/json",
                "Accept-Encoding": "identity",  # a small answer could unpack to any size
            },
            timeout=TIMEOUT_S,
            verify=tls or False,
            trust_env=False,
            proxy=proxy_of(url.host),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> Json:
        """The answer to one request."""
        try:
            response = retrying(
                lambda: self.bounded(method, path, **options),
                again=lambda error: isinstance(error, httpx.TransportError) and not _tls_failed(error),
                stop=stop_after_attempt(ATTEMPTS),
                first_s=FIRST_WAIT_S,
            )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        return self._answer(response)

    def bounded(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The response with its whole body. Raises VersionMismatch for one that is compressed or over the bound."""
        body, deadline = bytearray(), time.monotonic() + TOTAL_S
        with self._http.stream(method, path, **options) as response:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise self.not_ours()
            for data in response.iter_raw():
                body += data
                if len(body) > MAX_ANSWER_BYTES:
                    raise self.not_ours()
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer came too slowly", request=response.request)
        return httpx.Response(
            response.status_code,
            headers={"date": response.headers["date"]} if "date" in response.headers else {},
            content=bytes(body),
            request=response.request,
            extensions=response.extensions,
        )

    def _answer(self, response: httpx.Response) -> Json:
        try:
            body = printable_json(response.json())
        except (ValueError, RecursionError):
            body = None
        if response.is_success:
            if not isinstance(body, dict):
                raise self.not_ours()
            return body
        named = body.get("error") if isinstance(body, dict) else None
        if isinstance(named, dict) and isinstance(named.get("message"), str):
            raise _named_error(response.status_code, named)
        status = f"HTTP {response.status_code} {printable(response.reason_phrase)}".rstrip()
        kind = _BY_STATUS.get(response.status_code)
        if kind is None or (kind is JobNotFound and "/jobs" not in str(response.url)):
            raise CloudUnreachable(f"{self.url} answered {status}. Is a PrivTune cloud there, and healthy?")
        raise kind(f"{self.url} answered {status}. {kind.help}")

    def not_ours(self) -> PrivTuneError:
        """The error for an answer that no PrivTune cloud gives."""
        return VersionMismatch(f"{self.url} does not answer like a PrivTune cloud; check the address and its version.")

    def _unreachable(self, error: httpx.HTTPError) -> PrivTuneError:
        if _tls_failed(error):
            return CloudUnreachable(f"No trusted TLS connection to {self.url}. {self._untrusted}", detail=str(error))
        why = "no answer in time" if isinstance(error, httpx.TimeoutException) else "no connection"
        hint = "Check the address and that the cloud runs."
        return CloudUnreachable(f"The cloud at {self.url} can't be reached ({why}). {hint}", detail=repr(error))


def checked_url(base_url: str) -> httpx.URL:
    """The address of a cloud's REST API, https alone but for this machine. Raises InvalidInput."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise InvalidInput(f"--cloud must be like https://host:port, not {printable(base_url)[:100]!r}.", param="cloud")
    if url.scheme == "http" and not is_loopback(url.host):
        raise InvalidInput(
            f"{printable(base_url)} is clear text, which is allowed on this machine only. Use https://.", param="cloud"
        )
    return url


def _named_error(status: int, body: Json) -> PrivTuneError:
    """The error that the cloud's own error body names. body: printable."""
    reason = str(body.get("code") or "").upper()
    message, param = body["message"], body.get("param")
    if reason in _REASONS:
        error = by_reason(reason, message)
    elif reason == "NOT_FOUND":  # no such route: an older cloud
        error = VersionMismatch(message)
    else:
        error = _BY_STATUS.get(status, CloudUnreachable if status in (502, 503, 504) else InternalError)(message)
    error.param = param if isinstance(param, str) else None
    return error


def _tls_failed(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return True
        seen = seen.__cause__ or seen.__context__
    return "SSL" in str(error) or "certificate" in str(error).lower()
