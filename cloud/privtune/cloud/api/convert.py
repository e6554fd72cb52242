"""Converts requests to job specs, and snapshots to the objects that OpenAI's client knows."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from privtune.cloud.api.error_responses import explain
from privtune.cloud.api.requests import TOP_LEVEL, CreateJobRequest, Hyperparameters
from privtune.cloud.catalog import Catalog, ModelCard
from privtune.cloud.jobs.states import Checkpoint, Event, Job, tuned_name
from privtune.shared.errors import InvalidInput, JobNotFound
from privtune.shared.job_spec import DEVICE_SCHEME, JobSpec, OptimSpec

_DEFAULT_RATE = OptimSpec().learning_rate
_HANDLE = re.compile(r"^device://[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


def to_spec(request: CreateJobRequest) -> JobSpec:
    """The job that a request describes. Raises InvalidInput for contradictions and values out of range."""
    fields = request.privtune.model_dump(exclude_unset=True, exclude_none=True) if request.privtune else {}
    hyper = _hyperparameters(request)
    train, optim = fields.setdefault("train", {}), fields.setdefault("optim", {})
    _merge(train, "epochs", hyper.n_epochs, "n_epochs", "privtune.train.epochs")
    _merge(train, "batch_size", hyper.batch_size, "batch_size", "privtune.train.batch_size")
    _merge(train, "seed", request.seed, "seed", "privtune.train.seed")
    if hyper.learning_rate_multiplier is not None:
        rate = hyper.learning_rate_multiplier * _DEFAULT_RATE
        _merge(optim, "learning_rate", rate, "learning_rate_multiplier", "privtune.optim.learning_rate")
    for name in ("training_file", "validation_file"):
        _check_handle(name, getattr(request, name))
    try:
        return JobSpec.model_validate(fields | {name: getattr(request, name) for name in TOP_LEVEL})
    except ValidationError as error:
        first = error.errors()[0]
        inside = not first["loc"] or first["loc"][0] not in TOP_LEVEL
        message, param = explain([first | {"loc": ("privtune", *first["loc"]) if inside else first["loc"]}])
        raise InvalidInput(message, param=param) from error


def job_object(job: Job) -> dict[str, Any]:
    """`fine_tuning.job`. The status `paused` is ours; OpenAI's client accepts statuses that it doesn't know."""
    spec = job.spec
    hyper = {
        "n_epochs": spec.train.epochs,
        "batch_size": spec.train.batch_size,
        "learning_rate_multiplier": round(spec.optim.learning_rate / _DEFAULT_RATE, 9),
    }
    error = {"code": job.error.code, "message": job.error.message, "param": None} if job.error else None
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "model": spec.model,
        "fine_tuned_model": job.tuned_model,
        "organization_id": job.owner,
        "status": job.status,
        "hyperparameters": hyper,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
        "training_file": spec.training_file,
        "validation_file": spec.validation_file,
        "result_files": [],
        "trained_tokens": job.tokens,
        "error": error,
        "seed": spec.train.seed,
        "metadata": job.metadata,
        "estimated_finish": _estimate(job),
        "integrations": [],
        "privtune": {
            "spec": spec.model_dump(mode="json"),
            "spec_fingerprint": spec.fingerprint(),
            "phase": job.phase,
            "reason": job.reason,
            "requested": job.requested,
            "started_at": job.started_at,
            "adapter_sha256": job.adapter_sha256,
            "progress": job.progress.as_dict(),
        },
    }


def event_object(event: Event) -> dict[str, Any]:
    """`fine_tuning.job.event`."""
    return {
        "id": event_id(event.job_id, event.seq),
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.kind,
        "data": event.data,
    }


def checkpoint_object(job: Job, checkpoint: Checkpoint) -> dict[str, Any]:
    """`fine_tuning.job.checkpoint`."""
    return {
        "id": f"ftckpt-{_bare(job.id)}-{checkpoint.step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": f"{tuned_name(job)}:ckpt-step-{checkpoint.step}",
        "fine_tuning_job_id": job.id,
        "metrics": {"step": checkpoint.step},
        "step_number": checkpoint.step,
    }


def model_object(card: ModelCard, catalog: Catalog) -> dict[str, Any]:
    """`model`, with what a device needs to choose a cut."""
    return {
        "id": card.name,
        "object": "model",
        "created": catalog.created,
        "owned_by": "privtune-cloud",
        "privtune": {
            "architecture": card.architecture,
            "tasks": list(card.tasks),
            "layers": card.layers,
            "cuts": {"min": 0, "max": card.layers - 1},
            "hidden_size": card.hidden_size,
            "vocabulary": card.vocabulary,
            "max_positions": card.max_positions,
            "speed": catalog.speeds.of(card.name),
        },
    }


def tuned_model_object(job: Job, base: dict[str, Any]) -> dict[str, Any]:
    """`model` of a job that succeeded. base: that of its base model."""
    created = job.created_at if job.finished_at is None else job.finished_at
    return base | {"id": tuned_name(job), "created": created, "owned_by": job.owner}


def list_object(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """`list`: a page, and the id after which the next one begins."""
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def tuned_job_id(model: str) -> str:
    """The job of a tuned model's name."""
    return f"ftjob-{model.rpartition(':')[2]}"


def event_id(job_id: str, seq: int) -> str:
    """An event's public id."""
    return f"ftevent-{_bare(job_id)}-{seq}"


def number_of(cursor: str, job_id: str, prefix: str) -> int:
    """The number at the end of an event's or checkpoint's id. Raises InvalidInput, or JobNotFound for another job's."""
    head, _, number = cursor.rpartition("-")
    if not head.startswith(f"{prefix}-") or not (number.isascii() and number.isdigit() and len(number) < 16):
        raise InvalidInput(f"after: {cursor[:80]!r} is not a {prefix} id.", param="after")
    if head != f"{prefix}-{_bare(job_id)}":
        raise JobNotFound(f"after: {cursor[:80]!r} is not a {prefix} id of job {job_id}.", param="after")
    return int(number)


def _bare(job_id: str) -> str:
    return job_id.removeprefix("ftjob-")


def _estimate(job: Job) -> int | None:
    done, total = job.progress.step, job.progress.total_steps
    if job.status != "running" or job.started_at is None or job.progress.updated_at is None or not 0 < done <= total:
        return None
    spent = job.progress.updated_at - job.started_at
    return job.progress.updated_at + round(spent * (total - done) / done)


def _hyperparameters(request: CreateJobRequest) -> Hyperparameters:
    new = request.method.supervised.hyperparameters if request.method and request.method.supervised else None
    old = request.hyperparameters
    if new is None or old is None:
        return new or old or Hyperparameters()
    merged = old.model_dump()
    for name, value in new.model_dump().items():
        _merge(merged, name, value, f"method.supervised.hyperparameters.{name}", f"hyperparameters.{name}")
    return Hyperparameters.model_validate(merged)


def _merge(target: dict[str, Any], name: str, value: Any, ours: str, theirs: str) -> None:
    if value is None:
        return
    before = target.get(name)
    if before is not None:
        raise InvalidInput(f"{ours} ({value}) and {theirs} ({before}) are one setting; give only one.", param=ours)
    target[name] = value


def _check_handle(name: str, handle: str | None) -> None:
    if handle is None or _HANDLE.match(handle):
        return
    raise InvalidInput(
        f"{name} must be {DEVICE_SCHEME}NAME, a data set registered on the owner's device; text is never uploaded.",
        param=name,
    )
