"""One device's session on one job, as the desk keeps it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from privtune.cloud.compute.release_cache import ReleaseCache
from privtune.cloud.compute.step_machine import StepMachine
from privtune.cloud.compute.top_session import TopSession
from privtune.shared.job_spec import JobSpec
from privtune.shared.public_table import MAX_TABLE_BYTES


@dataclass(kw_only=True)
class JobSession:
    """One device's session on one job.

    holder: the device's name in this job.
    epoch: grows with every session of the job; calls and frames of an older one are refused. For training, the token
        of its lease.
    infer: for Infer, of which a job may have several; there is one session for training.
    stream: of the gateway, once it has begun; a session has one.
    tokens: released rows that its stream brought.
    bytes_up, bytes_down: bytes received and sent on the session's stream.
    trace: `traceparent` of the device's span; "": none came.
    opened: when, on the monotonic clock.
    """

    job_id: str
    owner: str
    holder: str
    epoch: int
    spec: JobSpec
    top: TopSession
    releases: ReleaseCache
    machine: StepMachine
    infer: bool = False
    stream: object = None
    tokens: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    trace: str = ""
    opened: float = field(default_factory=time.monotonic)

    @property
    def max_message_bytes(self) -> int | None:
        """Largest tensor that the job's description allows a device to send; None: no bound of its own."""
        train = self.spec.train
        if self.infer:
            return None
        rows = train.batch_size * train.max_length * self.releases.vector_bytes
        return max(rows, MAX_TABLE_BYTES) if self.releases.needs_table else rows
