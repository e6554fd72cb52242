"""What every RPC shares: the caller's metadata, and errors of the table as the call's status."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from pydantic import ValidationError

from privtune.cloud import meters
from privtune.cloud.audit_log.record import acting_from, acting_owner
from privtune.shared import metadata
from privtune.shared.errors import (
    InternalError,
    InvalidInput,
    JobConflict,
    PermissionDenied,
    PrivTuneError,
    Unauthenticated,
)
from privtune.shared.job_spec import DEVICE_SCHEME, JobSpec
from privtune.shared.printable import printable
from privtune.shared.tracing import TRACEPARENT
from privtune.shared.validation import first_problem
from privtune.split.v1 import split_pb2 as pb

log = logging.getLogger(__name__)
MAX_SAID = 2000  # characters of a statement or verdict that a device shares
Context: TypeAlias = Any  # grpc.aio.ServicerContext, which has no types


@asynccontextmanager
async def errors_as_status(context: Context) -> AsyncIterator[None]:
    """End the RPC with the status, reason and public message of an error of the table; the log gets the detail."""
    acting_from(context.peer())
    try:
        yield
    except grpc.aio.BaseError:  # of gRPC: the call is over
        raise
    except Exception as error:  # not a cancelled call
        await abort(context, _public(error))


async def abort(context: Context, error: PrivTuneError) -> None:
    """End the RPC with an error of the table. Raises grpc's own AbortError once the status is on its way."""
    meters.failed("grpc", error.reason, acting_owner())
    status, reason = getattr(grpc.StatusCode, error.grpc_status), ((metadata.REASON, error.reason),)
    await context.abort(status, error.message, trailing_metadata=reason)


def device_id(context: Context) -> str | None:
    """The device whose certificate TLS has verified; None for a caller without one."""
    names = context.auth_context().get("x509_common_name")
    return names[0].decode("ascii", "replace") if names else None


def certificate(context: Context) -> bytes:
    """The PEM of the device's certificate. Raises `PermissionDenied` for a caller without one."""
    found = context.auth_context().get("x509_pem_cert")
    if not found:
        raise PermissionDenied("only an enrolled device has a certificate to renew; see `privtune enroll`")
    return bytes(found[0])


def api_key(context: Context) -> str:
    """The caller's API key. Raises `Unauthenticated`."""
    scheme, _, key = _metadata(context).get(metadata.AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Unauthenticated("no API key came; set PRIVTUNE_API_KEY or pass --api-key")
    return key


def job_and_epoch(context: Context) -> tuple[str, int]:
    """The job and the session epoch that a stream is for. Raises `JobConflict` when they are missing."""
    found = _metadata(context)
    job_id, epoch = found.get(metadata.JOB, ""), found.get(metadata.EPOCH, "")
    if not job_id or not epoch.isdigit():
        raise JobConflict("open the job before streaming")
    return job_id, int(epoch)


def traceparent(context: Context) -> str:
    """The device's span that this call belongs to; "" for a device that exports none."""
    return _metadata(context).get(TRACEPARENT, "")


def wanted_bottom(request: pb.FetchRequest) -> JobSpec:
    """A job with the bottom that a request without a job asks for. Raises `InvalidInput`."""
    fields = {"model": request.model, "task": request.task, "cut": request.cut, "tail": request.tail}
    try:
        return JobSpec.model_validate({**fields, "training_file": f"{DEVICE_SCHEME}planned"})
    except ValidationError as error:
        raise InvalidInput(f"{first_problem(error.errors()).sentence}.") from None


def shared_figures(request: pb.ShareRequest) -> tuple[dict[str, float], dict[str, str]]:
    """The figures and the sentences that a device shares. Raises `InvalidInput` for what can't be ones."""
    names = [name for name in ("loss", "held_out_loss", "accuracy") if request.HasField(name)]
    figures = {name: float(getattr(request, name)) for name in names}
    said = {name: str(getattr(request, name)) for name in ("statement", "verdict") if getattr(request, name)}
    if not all(map(math.isfinite, figures.values())) or not 0 <= figures.get("accuracy", 0) <= 1:
        raise InvalidInput("a shared figure is not finite, or an accuracy not from 0 to 1")
    if any(len(text) > MAX_SAID for text in said.values()):
        raise InvalidInput(f"a shared sentence has more than {MAX_SAID:,} characters")
    return figures, {name: printable(text) for name, text in said.items()}


def this_task() -> asyncio.Task[Any]:
    """The task of the RPC that runs."""
    task = asyncio.current_task()
    if task is None:
        raise InternalError("a stream runs outside of a task")
    return task


def _metadata(context: Context) -> dict[str, str]:
    pairs = context.invocation_metadata() or ()
    return {key: value if isinstance(value, str) else "" for key, value in pairs}


def _public(error: Exception) -> PrivTuneError:
    if not isinstance(error, PrivTuneError):
        log.error("unexpected failure in the gateway", exc_info=error)
        return InternalError("an unexpected failure in the cloud; its operator finds the details in the log")
    if error.detail:
        log.warning(error.message, extra={"reason": error.reason, "detail": error.detail})
    return error
