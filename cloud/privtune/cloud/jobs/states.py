"""The states of a job, the moves between them, and the snapshots that the control plane hands out.

queued --> running <--> paused --> (queued: resumed, or taken from its device, by its owner)
   \\          |            |
    `--------- `----------- `--> succeeded (from running only) | failed | cancelled
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, TypeVar

from privtune.shared.errors import JobConflict
from privtune.shared.job_spec import JobSpec

T = TypeVar("T")

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Phase = Literal["waiting_for_device", "training", "pausing", "cancelling", "held", "done", "failed", "cancelled"]
Request = Literal["pause", "cancel"]
Level = Literal["info", "warn", "error"]

STATUSES: tuple[Status, ...] = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
FINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})

_MOVES: dict[Status, frozenset[Status]] = {
    "queued": frozenset({"running", "paused", "failed", "cancelled"}),
    "running": frozenset(
        {"running", "paused", "succeeded", "failed", "cancelled"}
    ),  # running again: the device reconnected
    "paused": frozenset({"running", "queued", "paused", "failed", "cancelled"}),  # paused again: for another reason
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


def check_move(job_id: str, old: Status, new: Status) -> None:
    """Raises JobConflict unless a job may move from `old` to `new`."""
    if new in _MOVES[old]:
        return
    if old in FINAL:
        raise JobConflict(f"Job {job_id} is {old} already and can't be changed.")
    raise JobConflict(f"Job {job_id} is {old}; it can't become {new} from there.")


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """How far a job is. In memory; stored only with a checkpoint or a change of state.

    step: optimiser steps applied.
    total_steps: optimiser steps of the whole job.
    tokens: released rows that the present session received, evaluations included.
    bytes_up, bytes_down: bytes received and sent on the present session's stream.
    loss: mean of the last step; None where the cloud does not know it.
    grad_norm: of the top's parameters in the last step, before clipping.
    updated_at: seconds since 1970.
    """

    step: int = 0
    total_steps: int = 0
    tokens: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    loss: float | None = None
    grad_norm: float | None = None
    updated_at: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed: a stable reason of `privtune.shared.errors` and a sentence for people."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A snapshot of a job. Times in seconds since 1970.

    reason: why the job is in this state, for people.
    requested: what its owner asked for and the next step boundary brings.
    held: paused by its owner; no device may continue it before `resume`.
    metadata: the owner's own pairs.
    tokens: released rows over all epochs, once the job has succeeded.
    adapter_sha256: of the adapter's weights; None before success and where they are on the device.
    """

    id: str
    owner: str
    spec: JobSpec
    status: Status
    phase: Phase
    reason: str
    requested: Request | None
    held: bool
    metadata: dict[str, str] = field(default_factory=dict)
    progress: JobProgress = field(default_factory=JobProgress)
    tokens: int | None = None
    adapter_sha256: str | None = None
    error: JobError | None = None
    created_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None

    @property
    def final(self) -> bool:
        """Whether the job has ended for good."""
        return self.status in FINAL

    @property
    def tuned_model(self) -> str | None:
        """The tuned model's name in OpenAI's form, ft:MODEL:OWNER:SUFFIX:ID; None before success."""
        return tuned_name(self) if self.status == "succeeded" else None


def tuned_name(job: Job) -> str:
    """The name that a job's model has, or will have."""
    return f"ft:{job.spec.model}:{job.owner}:{job.spec.suffix or ''}:{job.id.removeprefix('ftjob-')}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a job; `seq` counts from 1 inside the job."""

    job_id: str
    seq: int
    level: Level
    kind: Literal["message", "metrics"]
    message: str
    data: dict[str, Any]
    created_at: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A step from which the job can resume."""

    job_id: str
    step: int
    created_at: int


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """One page of a listing, and whether more follows."""

    items: list[T]
    has_more: bool
