"""The device's REST client of the control plane: it creates, watches and steers jobs; training goes over gRPC.

The cloud's answers are untrusted: ids are checked before they name a folder.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from email.utils import parsedate_tz
from pathlib import Path
from typing import Any
from urllib.parse import quote

from privtune.device.home.paths import check_job_id
from privtune.device.link.rest_client import Json, RestClient, checked_url
from privtune.device.link.trust import tls_context
from privtune.shared.errors import (
    Unauthenticated,
    VersionMismatch,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.versions import OURS, agree, heard

JOBS = "/v1/fine_tuning/jobs"
MODELS = "/v1/models"
MAX_BLOCKS = 1024  # a bound against nonsense
HELD = "held"  # the phase of a job that a person paused
PAGE = 100
MAX_LISTING_BYTES = 32 << 20  # of all pages of a listing


class ControlPlane(RestClient):
    """One cloud's job API. Use as a context manager, or call `close`.

    Args:
        base_url: `https://host[:port]`; `http://` for this machine only.
        api_key: the owner's key.
        ca_cert: PEM file of the cloud's own certificate authority; None: as `privtune.device.link.trust` finds them.
        enrolled: this device has a certificate of that cloud, for which the cloud has a port of its own.

    Raises Unauthenticated when the key is missing or malformed, and InvalidInput for the PEM file; otherwise as
    `RestClient`.
    """

    def __init__(self, base_url: str, api_key: str, ca_cert: Path | None = None, *, enrolled: bool = False) -> None:
        tls = tls_context(ca_cert) if checked_url(base_url).scheme == "https" else None
        super().__init__(base_url, tls, {"Authorization": f"Bearer {_checked_key(api_key)}"})
        self._enrolled = enrolled

    def info(self) -> Json:
        """Version, protocols and the gateway's address. Raises VersionMismatch when no protocol is common to both."""
        facts = self.call("GET", "/v1/privtune/info")
        spoken = (facts.get(name) for name in ("oldest_protocol_version", "protocol_version", "version"))
        agree(device=OURS, cloud=heard(*spoken))
        return facts

    def grpc_address(self) -> str:
        """The gateway's address as this device reaches it: the control plane's host with the gateway's port.

        Raises Unauthenticated where only enrolled devices get in, and this one is not.
        """
        facts = self.info()
        if facts.get("requires_enrolment") and not self._enrolled:
            raise Unauthenticated(
                f"The cloud at {self.url} takes enrolled devices alone. Ask its operator for a token, then run "
                "`privtune enroll` with it."
            )
        port, address = facts.get("device_port" if self._enrolled else "grpc_port"), facts.get("grpc_address")
        if isinstance(port, int):
            return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"
        if isinstance(address, str) and address:
            return address
        raise VersionMismatch(f"The cloud at {self.url} does not say where its gateway is; give --grpc-address.")

    def models(self) -> list[Json]:
        """Every model that a job may name, as the cloud shows it."""
        offered = self.call("GET", MODELS).get("data")
        if not isinstance(offered, list) or not all(isinstance(model, dict) for model in offered):
            raise self.not_ours()
        return offered

    def model(self, name: str) -> Json:
        """What the cloud says of a model. Raises ModelNotFound."""
        about = self.call("GET", f"{MODELS}/{quote(name, safe='/')}").get("privtune")
        return about if isinstance(about, dict) else {}

    def date(self) -> str | None:
        """What the cloud's clock says, as HTTP dates are written; None where it does not."""
        date = self.bounded("GET", "/healthz").headers.get("date")
        return date if date is not None and parsedate_tz(date) is not None else None

    def exchange(self, up: int, down: int) -> None:
        """Send so many bytes, which say nothing, and get so many: for whoever times the line."""
        self.call("POST", "/v1/privtune/line", json={"padding": os.urandom(up // 2).hex(), "answer": down})

    def blocks(self, model: str) -> int:
        """How many blocks a model has. Raises ModelNotFound."""
        layers = self.model(model).get("layers")
        if not isinstance(layers, int) or not 0 < layers <= MAX_BLOCKS:
            raise self.not_ours()
        return layers

    def check_model(self, model: str) -> None:
        """Raises ModelNotFound, PermissionDenied or Unauthenticated where a job with this model would be refused."""
        self.call("GET", f"{MODELS}/{quote(model, safe='/')}")

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
            raise self.not_ours()
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
                raise self.not_ours()
            taken += len(json.dumps(items))
            if taken > MAX_LISTING_BYTES:
                raise self.not_ours()
            yield from items
            if not page.get("has_more") or not items or items[-1].get("id") in (None, after):
                return
            after = str(items[-1]["id"])

    def _job(self, job: Json) -> Json:
        if not isinstance(job.get("id"), str) or not isinstance(job.get("status"), str):
            raise self.not_ours()
        check_job_id(job["id"])
        return job


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


def _path(job_id: str, *more: str) -> str:
    return "/".join((JOBS, quote(check_job_id(job_id), safe=""), *more))


def _checked_key(api_key: str) -> str:
    key = api_key.strip()
    if not key:
        raise Unauthenticated("No API key: set PRIVTUNE_API_KEY (or --api-key). The cloud's operator makes one.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise Unauthenticated("The API key has characters that no key has; copy it again.")
    return key
