"""Submitting a job: the fields that most jobs need, and JSON for all others."""

from __future__ import annotations

import json
import secrets
from typing import Any

from starlette.responses import Response

from privtune.cloud.dashboard.inside_rest import Refused
from privtune.cloud.dashboard.visit import Visit, to

_DEVICE = "device://"
_EMPTY = {
    "model": "",
    "training_file": "",
    "validation_file": "",
    "task": "classification",
    "n_epochs": "",
    "suffix": "",
    "replace": "identifying",
    "options": "",
}


async def form(visit: Visit) -> Response:
    """The empty form."""
    return await _shown(visit, _EMPTY | {"once": secrets.token_urlsafe(16)})


async def create(visit: Visit) -> Response:
    """Submit it; a refusal shows the form again, as it was filled in. Sent twice, it makes one job."""
    filled = {name: visit.said(name) for name in (*_EMPTY, "once")}
    try:
        body = _request(filled)
        job = await visit.rest.post(
            "fine_tuning", "jobs", body=body, headers={"idempotency-key": filled["once"] or secrets.token_urlsafe(16)}
        )
    except Refused as refused:
        if refused.status in (401, 403, 429):
            raise
        # What was refused made no job, so a corrected form is a new request.
        return await _shown(visit, filled | {"once": secrets.token_urlsafe(16)}, refused)
    return to(f"/jobs/{job['id']}")


async def _shown(visit: Visit, filled: dict[str, str], refused: Refused | None = None) -> Response:
    models = await visit.rest.get("models")
    return visit.page(
        "new.html",
        200 if refused is None else refused.status,
        filled=filled,
        models=[model["id"] for model in models["data"]],
        message="" if refused is None else refused.message,
    )


def _request(filled: dict[str, str]) -> dict[str, Any]:
    """The body of REST's request. Raises Refused for JSON that is none; everything else is REST's to check."""
    try:
        options = json.loads(filled["options"] or "{}")
    except ValueError as error:
        raise Refused(400, f"More settings: this is not JSON ({error}).") from None
    if not isinstance(options, dict):
        raise Refused(400, 'More settings: write a JSON object, for example {"tail": 2}.')
    chosen = {"task": filled["task"], "surrogates": filled["replace"] and {"replace": filled["replace"]}}
    options = {name: value for name, value in chosen.items() if value} | options
    body: dict[str, Any] = {"model": filled["model"], "privtune": options}
    body["training_file"] = _handle(filled["training_file"])
    if filled["validation_file"]:
        body["validation_file"] = _handle(filled["validation_file"])
    if filled["suffix"]:
        body["suffix"] = filled["suffix"]
    if filled["n_epochs"]:
        epochs = filled["n_epochs"]
        body["hyperparameters"] = {"n_epochs": int(epochs) if epochs.isdecimal() else epochs}
    return body


def _handle(name: str) -> str:
    return name if name.startswith(_DEVICE) else _DEVICE + name
