"""What a job can be, what it can become, and the snapshots that the control plane hands out.

queued --> running <--> paused --> (queued: resumed by its owner)
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
    "running": frozenset({"running", "paused", "succeeded", "failed", "cancelled"}),  # running again: a reconnect
    "paused": frozenset({"running", "queued", "paused", "failed", "cancelled"}),  # paused again: for another reason
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


def check_move(job_id: str, old: Status, new: Status) -> None:
    """Raises JobConflict unless a job may go from `old` to `new`."""
    if new in _MOVES[old]:
        return
    if old in FINAL:
        raise JobConflict(f"Job {job_id} is {old} already and can't be changed any more.")
    raise JobConflict(f"Job {job_id} is {old}; it can't become {new} from there.")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is. Lives in memory; stored only along with a checkpoint or a change of state."""

    step: int = 0
    total_steps: int = 0
    tokens: int | None = None
    tokens_per_second: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    grad_norm: float | None = None
    loss: float | None = None  # shared labels only: otherwise the cloud doesn't know it
    updated_at: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed: a stable reason of privtune.shared.errors and a sentence for people."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A snapshot of a job. `held`: paused by its owner, so a device must not go on before `resume`."""

    id: str
    owner: str
    spec: JobSpec
    status: Status
    phase: Phase
    reason: str
    requested: Request | None
    held: bool
    metadata: dict[str, str] = field(default_factory=dict)
    session_epoch: int = 0
    progress: Progress = field(default_factory=Progress)
    tokens: int | None = None
    adapter_sha256: str | None = None
    error: JobError | None = None
    created_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None

    @property
    def final(self) -> bool:
        """True when nothing can happen to the job any more."""
        return self.status in FINAL


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
    """A step from which the job can go on."""

    job_id: str
    step: int
    created_at: int


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """A part of a listing and whether more follows it."""

    items: list[T]
    has_more: bool
