"""Keeps the leases of the jobs whose training streams live in this process, and ends the streams that lost theirs.

It ends streams of inference as well, when their job was deleted through another process on the database.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from privtune.cloud.auth import Devices
from privtune.cloud.jobs.leases import Leases
from privtune.shared.errors import JobConflict, JobNotFound, PrivTuneError

log = logging.getLogger(__name__)
LOOK_S = 1.0  # a request of another process, and the loss of a lease, take effect within this time


class LeaseKeeper:
    """Looks after the leases once a second, from the loop that makes it until `stop`.

    It has a thread of its own: neither a pass through a model nor a crowd of calls keeps it waiting.

    devices: those that were revoked lose their jobs.
    held: tokens of the training streams that live, by job.
    end: ends a stream with an error, if it is still that of the token.
    used: jobs of the other streams that live.
    end_used: ends those of a job that was deleted. All four are called on the loop.
    """

    def __init__(
        self,
        leases: Leases,
        devices: Devices,
        held: Callable[[], Mapping[str, int]],
        end: Callable[[str, int, PrivTuneError], None],
        used: Callable[[], Collection[str]],
        end_used: Callable[[str], None],
    ) -> None:
        self._leases, self._devices, self._held, self._end = leases, devices, held, end
        self._used, self._end_used = used, end_used
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="leases")
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        self._task = self._loop.create_task(self._run())

    def wake(self) -> None:
        """Look at once. Called from any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wake.set)

    @property
    def ended(self) -> bool:
        """Whether nobody looks any more."""
        return self._task.done()

    async def stop(self) -> None:
        """Look no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            held = dict(self._held())
            try:
                lost, deleted = await self._loop.run_in_executor(self._thread, self._look, held, set(self._used()))
            except Exception:  # a database that is away: streams go on as long as their leases do
                log.exception("the leases can't be looked after")
                lost, deleted = {}, set()
            for job_id, error in lost.items():
                self._end(job_id, held[job_id], error)
            for job_id in deleted:
                self._end_used(job_id)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_S)

    def _look(self, held: Mapping[str, int], used: Collection[str]) -> tuple[dict[str, PrivTuneError], set[str]]:
        for job_id in self._devices.abandoned():
            with suppress(JobConflict, JobNotFound):  # it has ended
                self._leases.release(job_id, why="taken from its device, which was revoked")
            self._devices.opened(None, job_id)
        lost = self._leases.keep(held)  # before `reap`: a process that slept still holds what nobody has claimed since
        self._leases.reap()
        return lost, self._leases.deleted(used)
