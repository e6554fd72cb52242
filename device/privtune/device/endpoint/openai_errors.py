"""Every error of the endpoint in OpenAI's shape: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import logging
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from privtune.shared.errors import InternalError, InvalidInput, PrivTuneError
from privtune.shared.validation import first_problem

log = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_NOT_A_FIELD = ("body", "str", "int", "float", "bool")  # pydantic's own parts of a location


def body_of(error: PrivTuneError) -> dict[str, Any]:
    """The error as a JSON document."""
    status = error.http_status
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.reason}}


def respond(error: PrivTuneError) -> JSONResponse:
    """The response for an error of the table."""
    # Else openai's client would repeat a conflict.
    headers = {"x-should-retry": "false"} if error.http_status == 409 else {}
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body_of(error), error.http_status, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception of the app in this shape."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        return respond(_as_error(error))

    for kind in (PrivTuneError, RequestValidationError, Exception):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(HTTPException, _routing_error)


def _as_error(error: Exception) -> PrivTuneError:
    if isinstance(error, PrivTuneError):
        return error
    if isinstance(error, RequestValidationError):
        problem = first_problem(error.errors())
        if problem.kind == "json_invalid":
            return InvalidInput("The body is not valid JSON.")
        field = replace(problem, where=tuple(part for part in problem.where if part not in _NOT_A_FIELD))
        return InvalidInput(f"{field.sentence}.", param=field.field or None)
    log.error("unexpected failure in the endpoint", exc_info=error)
    return InternalError("Unexpected failure; see the terminal of `privtune serve`.")


async def _routing_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error.__cause__, PrivTuneError):  # FastAPI wraps errors raised while it reads the body
        return respond(error.__cause__)
    status = error.status_code if isinstance(error, HTTPException) else 500
    why = "there is no such route." if status == 404 else "this can't be done here."
    document = body_of(InvalidInput(f"{request.method} {request.url.path}: {why}"))
    document["error"] |= {"type": _TYPES.get(status, "invalid_request_error"), "code": HTTPStatus(status).name}
    return JSONResponse(document, status)
