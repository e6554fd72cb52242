"""The device's REST client of the control plane: it creates, watches and steers jobs; training goes over gRPC.

The cloud's answers are untrusted: ids are checked before they name a folder, and every text of an answer loses its
control characters as it arrives (`_answer`), because it may reach a terminal.
"""

from __future__ import annotations

import json
import os
import ssl
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from email.utils import parsedate_tz
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
from tenacity import stop_after_attempt

from privtune.device.home.paths import check_job_id
from privtune.device.link.trust import proxy_of, tls_context
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
from privtune.shared.job_spec import JobSpec
from privtune.shared.printable import printable, printable_json
from privtune.shared.retry import retrying
from privtune.shared.versions import OURS, agree, heard

JOBS = "/v1/fine_tuning/jobs"
MODELS = "/v1/models"
MAX_BLOCKS = 1024  # a bound against nonsense
HELD = "held"  # the phase of a job that a person paused
PAGE = 100
TIMEOUT_S = 30.0  # of one wait for the server
TOTAL_S = 120.0  # of one attempt
MAX_ANSWER_BYTES = 4 << 20
MAX_LISTING_BYTES = 32 << 20  # of all pages of a listing
ATTEMPTS = 3  # at a request that no server has answered
FIRST_WAIT_S = 0.5

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


class ControlPlane:
    """One cloud's job API. Use as a context manager, or call `close`.

    Args:
        base_url: `https://host[:port]`; `http://` for this machine only.
        api_key: the owner's key.
        ca_cert: PEM file of the cloud's own certificate authority; None: as `privtune.device.link.trust` finds them.

    Raises:
        InvalidInput: the address or the PEM file is wrong.
        Unauthenticated: the key is missing or malformed.

    Every call raises the cloud's refusal as the error of its reason, CloudUnreachable without an answer, and
    VersionMismatch for an answer that is not a PrivTune cloud's.
    """

    def __init__(self, base_url: str, api_key: str, ca_cert: Path | None = None) -> None:
        url = _checked_url(base_url)
        self.url = str(url).rstrip("/")
        self.host = url.host
        self._http = httpx.Client(
            base_url=self.url,
            headers={
                "Authorization": f"Bearer {_checked_key(api_key)}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",  # a small answer could unpack to any size
            },
            timeout=TIMEOUT_S,
            verify=tls_context(ca_cert) if url.scheme == "https" else False,
            trust_env=False,
            proxy=proxy_of(url.host),
        )

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def info(self) -> Json:
        """Version, protocols and the gateway's address. Raises VersionMismatch when no protocol is common to both."""
        facts = self.call("GET", "/v1/privtune/info")
        spoken = (facts.get(name) for name in ("oldest_protocol_version", "protocol_version", "version"))
        agree(device=OURS, cloud=heard(*spoken))
        return facts

    def grpc_address(self) -> str:
        """The gateway's address as this device reaches it: the control plane's host with the gateway's port."""
        facts = self.info()
        port, address = facts.get("grpc_port"), facts.get("grpc_address")
        if isinstance(port, int):
            return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"
        if isinstance(address, str) and address:
            return address
        raise VersionMismatch(f"The cloud at {self.url} does not say where its gateway is; give --grpc-address.")

    def models(self) -> list[Json]:
        """Every model that a job may name, as the cloud shows it."""
        offered = self.call("GET", MODELS).get("data")
        if not isinstance(offered, list) or not all(isinstance(model, dict) for model in offered):
            raise self._not_ours()
        return offered

    def model(self, name: str) -> Json:
        """What the cloud says of a model. Raises ModelNotFound."""
        about = self.call("GET", f"{MODELS}/{quote(name, safe='/')}").get("privtune")
        return about if isinstance(about, dict) else {}

    def date(self) -> str | None:
        """What the cloud's clock says, as HTTP dates are written; None where it does not."""
        date = self._bounded("GET", "/healthz").headers.get("date")
        return date if date is not None and parsedate_tz(date) is not None else None

    def exchange(self, up: int, down: int) -> None:
        """Send so many bytes, which say nothing, and get so many: for whoever times the line."""
        self.call("POST", "/v1/privtune/line", json={"padding": os.urandom(up // 2).hex(), "answer": down})

    def blocks(self, model: str) -> int:
        """How many blocks a model has. Raises ModelNotFound."""
        layers = self.model(model).get("layers")
        if not isinstance(layers, int) or not 0 < layers <= MAX_BLOCKS:
            raise self._not_ours()
        return layers

    def create_job(self, spec: JobSpec) -> Json:
        """Submit a job. A repetition after a lost connection does not create a second one."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return self._job(self.call("POST", JOBS, json=_request_body(spec), headers=key))

    def get_job(self, job_id: str) -> Json:
        """One job as the cloud shows it."""
        return self._job(self.call("GET", _path(job_id)))

    def list_jobs(self, status: Collection[str] | None = None, limit: int | None = None) -> list[Json]:
        """Jobs of this key, newest first: at most `limit`, and only those with one of the given statuses."""
        found: list[Json] = []
        params = {"status": list(status)} if status else {}
        for item in self.pages(JOBS, params):
            job = self._job(item)
            if status is None or job["status"] in status:
                found.append(job)
            if limit is not None and len(found) >= limit:
                break
        return found

    def cancel(self, job_id: str) -> Json:
        """End the job at the next step boundary."""
        return self._job(self.call("POST", _path(job_id, "cancel")))

    def delete_job(self, job_id: str) -> Json:
        """Delete a job that has ended. Returns the receipt: what `went` by kind, and what `stays` with reasons."""
        receipt = self.call("DELETE", _path(job_id)).get("privtune")
        if not isinstance(receipt, dict) or not all(isinstance(receipt.get(part), dict) for part in ("went", "stays")):
            raise self._not_ours()
        return receipt

    def pause(self, job_id: str) -> Json:
        """Hold the job at the next step boundary until `resume`."""
        return self._job(self.call("POST", _path(job_id, "pause")))

    def release(self, job_id: str) -> Json:
        """Take the job from the device that holds it, so that another may begin it."""
        return self._job(self.call("POST", _path(job_id, "release")))

    def resume(self, job_id: str) -> Json:
        """Let a held job continue as soon as its device connects."""
        return self._job(self.call("POST", _path(job_id, "resume")))

    def events(self, job_id: str, seen: Collection[str] = ()) -> list[Json]:
        """The job's events, oldest first, without those whose ids are in `seen`."""
        fresh: list[Json] = []
        for event in self.pages(_path(job_id, "events"), {}):  # newest first, as OpenAI's API has it
            if event.get("id") in seen:
                break
            fresh.append(event)
        return fresh[::-1]

    def pages(self, path: str, params: Mapping[str, Any]) -> Iterator[Json]:
        """The objects of all pages of a listing."""
        after: str | None = None
        taken = 0
        while True:
            page = self.call("GET", path, params={**params, "limit": PAGE} | ({"after": after} if after else {}))
            items = page.get("data")
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise self._not_ours()
            taken += len(json.dumps(items))
            if taken > MAX_LISTING_BYTES:
                raise self._not_ours()
            yield from items
            if not page.get("has_more") or not items or items[-1].get("id") in (None, after):
                return
            after = str(items[-1]["id"])

    def _job(self, job: Json) -> Json:
        if not isinstance(job.get("id"), str) or not isinstance(job.get("status"), str):
            raise self._not_ours()
        check_job_id(job["id"])
        return job

    def call(self, method: str, path: str, **options: Any) -> Json:
        """The answer to one request."""
        try:
            response = retrying(
                lambda: self._bounded(method, path, **options),
                again=lambda error: isinstance(error, httpx.TransportError) and not _tls_failed(error),
                stop=stop_after_attempt(ATTEMPTS),
                first_s=FIRST_WAIT_S,
            )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        return self._answer(response)

    def _bounded(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The response with its whole body. Raises VersionMismatch for one that is compressed or over the bound."""
        body, deadline = bytearray(), time.monotonic() + TOTAL_S
        with self._http.stream(method, path, **options) as response:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise self._not_ours()
            for data in response.iter_raw():
                body += data
                if len(body) > MAX_ANSWER_BYTES:
                    raise self._not_ours()
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
                raise self._not_ours()
            return body
        named = body.get("error") if isinstance(body, dict) else None
        if isinstance(named, dict) and isinstance(named.get("message"), str):
            raise _named_error(response.status_code, named)
        status = f"HTTP {response.status_code} {printable(response.reason_phrase)}".rstrip()
        kind = _BY_STATUS.get(response.status_code)
        if kind is None or (kind is JobNotFound and JOBS not in str(response.url)):
            raise CloudUnreachable(f"{self.url} answered {status}. Is a PrivTune cloud there, and healthy?")
        raise kind(f"{self.url} answered {status}. {kind.help}")

    def _not_ours(self) -> PrivTuneError:
        return VersionMismatch(f"{self.url} does not answer like a PrivTune cloud; check the address and its version.")

    def _unreachable(self, error: httpx.HTTPError) -> PrivTuneError:
        if _tls_failed(error):
            hint = "Check the address; for a cloud with its own authority, give its file with --ca-cert."
            return CloudUnreachable(f"No trusted TLS connection to {self.url}. {hint}", detail=str(error))
        why = "no answer in time" if isinstance(error, httpx.TimeoutException) else "no connection"
        hint = "Check the address and that the cloud runs."
        return CloudUnreachable(f"The cloud at {self.url} can't be reached ({why}). {hint}", detail=repr(error))


def job_spec(job: Json) -> JobSpec:
    """A job's description as the cloud shows it. Raises VersionMismatch when this device can't read it."""
    try:
        return JobSpec.model_validate(job["privtune"]["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise VersionMismatch(
            f"The description of job {job['id']} can't be read; is the cloud newer than this device?", detail=str(error)
        ) from None


def phase_of(job: Json) -> str:
    """The finer state; empty if the cloud does not give one."""
    return str((job.get("privtune") or {}).get("phase") or "")


def _request_body(spec: JobSpec) -> Json:
    facts = spec.model_dump(mode="json")
    top = {name: facts.pop(name) for name in ("model", "training_file", "validation_file", "suffix")}
    return {name: value for name, value in top.items() if value is not None} | {
        "privtune": {name: value for name, value in facts.items() if value is not None},
    }


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


def _path(job_id: str, *more: str) -> str:
    return "/".join((JOBS, quote(check_job_id(job_id), safe=""), *more))


def _checked_url(base_url: str) -> httpx.URL:
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


def _checked_key(api_key: str) -> str:
    key = api_key.strip()
    if not key:
        raise Unauthenticated("No API key: set PRIVTUNE_API_KEY (or --api-key). The cloud's operator makes one.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise Unauthenticated("The API key has characters that no key has; copy it again.")
    return key


def _tls_failed(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return True
        seen = seen.__cause__ or seen.__context__
    return "SSL" in str(error) or "certificate" in str(error).lower()
