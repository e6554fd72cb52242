"""Every error response in one shape: OpenAI's `{"error": {…}}`, or problem+json when the client asks for it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from privtune.cloud import meters
from privtune.cloud.audit_log.record import acting_owner
from privtune.shared.errors import InternalError, InvalidInput, PrivTuneError, RateLimited
from privtune.shared.validation import first_problem

log = logging.getLogger(__name__)

_PROBLEM = "application/problem+json"
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
# Parts of a validation error's location that are pydantic's own, not fields of the client.
_NOT_A_FIELD = re.compile(r"[\[\](){},]|^(body|query|header|path|int|float|str|bool|function-.*)$")


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception of the app in this shape."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        return respond(request, as_error(error))

    for kind in (PrivTuneError, RequestValidationError, Exception):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(HTTPException, _routing_error)


def respond(request: Request, error: PrivTuneError) -> JSONResponse:
    """The response to an error of the table; its detail goes to the log only."""
    meters.failed("rest", error.reason, acting_owner())
    level = logging.ERROR if error.http_status >= 500 else logging.INFO
    log.log(level, error.message, extra={"reason": error.reason, "detail": error.detail, "path": request.url.path})
    response = _json(request, error.http_status, error.message, error.reason, error.param)
    if isinstance(error, RateLimited):
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


def as_error(error: Exception) -> PrivTuneError:
    """Any exception as a row of the table."""
    if isinstance(error, PrivTuneError):
        return error
    if isinstance(error, RequestValidationError):
        message, param = explain(error.errors())
        return InvalidInput(message, param=param)
    log.error("unexpected failure in the API", exc_info=error)
    return InternalError("An unexpected failure in the cloud; its operator finds the details in the log.")


def explain(errors: Sequence[Any]) -> tuple[str, str | None]:
    """One sentence about the first of pydantic's errors, and the field that it concerns."""
    problem = first_problem(errors)
    where = problem.where[:2] if problem.where[:1] in (("query",), ("header",)) else problem.where
    problem = replace(problem, where=tuple(part for part in where if not _NOT_A_FIELD.search(str(part))))
    param = problem.field or None
    if problem.kind == "json_invalid":
        return f"The body is not valid JSON: {errors[0].get('ctx', {}).get('error', problem.text)}.", None
    if problem.kind == "extra_forbidden":
        return f"Unknown field {param!r}. `GET /docs` lists the fields.", param
    if problem.kind == "missing":
        return (f"{param} is missing." if param else "The request has no JSON body."), param
    if problem.kind in ("model_attributes_type", "model_type", "dict_type"):
        return f"{param or 'The body'} must be a JSON object.", param
    return f"{problem.sentence}.", param


async def _routing_error(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if isinstance(error.__cause__, PrivTuneError):  # FastAPI wraps what happens while it reads the body
        return respond(request, error.__cause__)
    reasons = {
        400: ("INVALID_INPUT", "The body is not valid JSON in UTF-8."),
        404: ("NOT_FOUND", "There is no such route."),
        405: ("METHOD_NOT_ALLOWED", "This route has other methods."),
    }
    code, message = reasons.get(status, (HTTPStatus(status).name, f"{HTTPStatus(status).phrase}."))
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    response = _json(request, status, f"{request.method} {request.url.path}: {message} See /docs.", code, None)
    if status == 405:
        headers["allow"] = ", ".join(_methods(request)) or headers.get("allow", "")
    response.headers.update(headers)
    return response


def _methods(request: Request) -> list[str]:
    """The methods of every documented route with this path; the router itself names those of the first only."""
    paths = request.app.openapi()["paths"].items()
    here = (operations for template, operations in paths if compile_path(template)[0].match(request.url.path))
    return sorted({method.upper() for operations in here for method in operations})


def _json(request: Request, status: int, message: str, code: str, param: str | None) -> JSONResponse:
    headers = {"x-should-retry": "false"} if status in (409, 507) else {}  # openai's client retries these otherwise
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if _PROBLEM in request.headers.get("accept", ""):
        problem = {
            "type": f"urn:privtune:error:{code.lower()}",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": message,
            "code": code,
            "param": param,
        }
        return JSONResponse(problem, status, headers, media_type=_PROBLEM)
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)
