"""The response objects as the OpenAPI document describes them. `convert` builds them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from privtune.cloud.jobs.states import Level, Phase, Request, Status
from privtune.shared.job_spec import JobSpec


class _Object(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class ErrorBody(_Object):
    """What went wrong and what to do about it."""

    message: str = Field(examples=["cut must be from 0 to 5 for minilm (6 blocks), not 9."])
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(None, description="The field that the error concerns.", examples=["privtune.cut"])
    code: str = Field(description="A stable reason of PrivTune's error table.", examples=["CUT_OUT_OF_RANGE"])


class ErrorResponse(_Object):
    """Every error. With `Accept: application/problem+json` in RFC 9457's form instead."""

    error: ErrorBody


class ProgressObject(_Object):
    """How far the job is, as of the last step that the cloud saw."""

    step: int = 0
    total_steps: int = 0
    tokens: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    grad_norm: float | None = None
    loss: float | None = Field(None, description="Only with `labels: shared`; otherwise the cloud doesn't know it.")
    updated_at: int | None = None


class PrivTuneJob(_Object):
    """What OpenAI's object has no field for."""

    spec: JobSpec
    spec_fingerprint: str = Field(description="SHA-256 of the spec; the device's handshake compares it.")
    phase: Phase
    reason: str = Field(description="Why the job is in this state, for people.")
    requested: Request | None = Field(None, description="What takes effect at the next step boundary.")
    started_at: int | None = None
    adapter_sha256: str | None = None
    progress: ProgressObject


class JobErrorObject(_Object):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobObject(_Object):
    """OpenAI's `fine_tuning.job` with the added status `paused`: waiting for its device, or held by its owner."""

    id: str = Field(examples=["ftjob-5f0f6c2e9d7a4b1c8e3d2a10"])
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None = Field(description="ft:MODEL:OWNER:SUFFIX:ID, once the job has succeeded.")
    organization_id: str = Field(description="The owner of the API key.")
    status: Status
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    error: JobErrorObject | None
    seed: int
    metadata: dict[str, str]
    estimated_finish: int | None
    integrations: list[Any]
    privtune: PrivTuneJob


class EventObject(_Object):
    """OpenAI's `fine_tuning.job.event`."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Level
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class CheckpointObject(_Object):
    """OpenAI's `fine_tuning.job.checkpoint`."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int


class ModelDetails(_Object):
    """What a device needs to choose a cut."""

    architecture: str
    tasks: list[str]
    layers: int
    cuts: dict[str, int]
    hidden_size: int
    vocabulary: int | None
    max_positions: int | None
    speed: dict[str, float | None] = Field(
        description="Tokens through one block a second, in the steps of this cloud's jobs since it started: `train` "
        "(forward, backward, optimiser) and `forward` alone; null until there was one."
    )


class ModelObject(_Object):
    """OpenAI's `model`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    privtune: ModelDetails


class KeptObject(_Object):
    """What there was of one kind: files or rows, and the bytes of files."""

    count: int
    bytes: int


class ReceiptObject(_Object):
    """What a deletion removed, and what deliberately stays with the reason."""

    job_id: str
    model: str | None
    deleted_at: int
    why: Literal["asked", "age"]
    went: dict[str, KeptObject]
    stays: dict[str, str]


class DeletedObject(_Object):
    """OpenAI's answer to a deletion, with a receipt."""

    id: str
    object: Literal["fine_tuning.job", "model"]
    deleted: Literal[True]
    privtune: ReceiptObject


class ListPage(_Object):
    """A page of a listing."""

    object: Literal["list"]
    has_more: bool = Field(description="If true, ask again with `after=<last_id>`.")
    first_id: str | None
    last_id: str | None


class JobPage(ListPage):
    """A page of jobs."""

    data: list[JobObject]


class EventPage(ListPage):
    """A page of events."""

    data: list[EventObject]


class CheckpointPage(ListPage):
    """A page of checkpoints."""

    data: list[CheckpointObject]


class ModelPage(ListPage):
    """All models."""

    data: list[ModelObject]


class FilePage(ListPage):
    """No files: none are uploaded."""

    data: list[dict[str, Any]]


class InfoObject(_Object):
    """What a device asks first: where gRPC listens, and which protocols it speaks."""

    object: Literal["privtune.info"]
    version: str
    protocol_version: int = Field(description="The newest that it speaks.")
    oldest_protocol_version: int
    grpc_port: int
    device_port: int | None = Field(description="Of gRPC for enrolled devices; null: there is none without TLS.")
    requires_enrolment: bool = Field(description="No API key is enough for gRPC.")
    tls: bool
    max_tensor_bytes: int


class LineObject(_Object):
    """As much as was asked for."""

    object: Literal["privtune.line"]
    padding: str


class HealthObject(_Object):
    """The process answers."""

    status: Literal["ok"]
