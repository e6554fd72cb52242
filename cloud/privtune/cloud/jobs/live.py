"""What is known of running jobs in memory only, so that heartbeats cost no query."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from privtune.cloud.jobs.progress_curve import ProgressCurve, ProgressPoint
from privtune.cloud.jobs.states import JobProgress, Request


class LiveState:
    """Progress and its curve, pending requests and leases by job. Thread-safe."""

    def __init__(self) -> None:
        self._progress: dict[str, JobProgress] = {}
        self._curves: dict[str, ProgressCurve] = {}
        self._requests: dict[str, Request | None] = {}
        self._leases: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def progress(self, job_id: str) -> JobProgress | None:
        """The newest progress; None when none came since the process started."""
        with self._lock:
            return self._progress.get(job_id)

    def set_progress(self, job_id: str, progress: JobProgress) -> None:
        """Replace a job's progress, and add it to the curve."""
        with self._lock:
            self._progress[job_id] = progress
            self._curves.setdefault(job_id, ProgressCurve()).add(progress)

    def curve(self, job_id: str) -> tuple[list[ProgressPoint], dict[str, str]] | None:
        """The points of a job and what its device says of it; None where only the database has them."""
        with self._lock:
            curve = self._curves.get(job_id)
            return None if curve is None else (list(curve.points), dict(curve.said))

    def begin_curve(self, job_id: str, stored: Callable[[], ProgressCurve]) -> None:
        """A session begins. stored: the curve as the database has it, for a job that is new to this process."""
        with self._lock:
            self._known(job_id, stored).begins()

    def share(
        self,
        job_id: str,
        stored: Callable[[], ProgressCurve],
        step: int,
        figures: Mapping[str, float],
        said: Mapping[str, str],
    ) -> None:
        """Add what a device shares to its job's curve. stored: as in `begin_curve`."""
        with self._lock:
            self._known(job_id, stored).share(step, figures, said)

    def _known(self, job_id: str, stored: Callable[[], ProgressCurve]) -> ProgressCurve:
        if job_id not in self._curves:
            self._curves[job_id] = stored()
        return self._curves[job_id]

    def request(self, job_id: str) -> Request | None:
        """What a running job was asked to do. Raises KeyError when only the database can say."""
        with self._lock:
            return self._requests[job_id]

    def set_request(self, job_id: str, request: Request | None) -> None:
        """Remember what a running job was asked to do; None for nothing."""
        with self._lock:
            self._requests[job_id] = request

    def holds(self, job_id: str, token: int) -> bool:
        """Whether the session of this token surely holds its running job; False when only the database can say."""
        with self._lock:
            known, until = self._leases.get(job_id, (0, 0.0))
        return known == token and time.monotonic() < until

    def set_lease(self, job_id: str, token: int, until: float) -> None:
        """A session holds its running job until then, on the monotonic clock."""
        with self._lock:
            self._leases[job_id] = token, until

    def drop_lease(self, job_id: str) -> None:
        """Ask the database the next time."""
        with self._lock:
            self._leases.pop(job_id, None)

    def drop_request(self, job_id: str) -> None:
        """Forget the request of a job that no longer runs."""
        with self._lock:
            self._requests.pop(job_id, None)

    def drop_progress(self, job_id: str) -> None:
        """Forget the progress of a job that has ended."""
        with self._lock:
            self._progress.pop(job_id, None)
            self._curves.pop(job_id, None)
