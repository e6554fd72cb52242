"""What ends by age: jobs, events, packages that nobody fetches. Swept when the server starts and every hour after that.

Once a day also what interrupted writes have left in a bucket, which takes a request for each unit in it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import Protocol

from privtune.cloud.audit_log.check import prune
from privtune.cloud.audit_log.record import acting_from, record
from privtune.cloud.db.store import Store
from privtune.cloud.jobs.deletions import Deletions
from privtune.cloud.settings import Settings
from privtune.shared.errors import PrivTuneError

log = logging.getLogger(__name__)

_EVERY_S = 3600.0
_DAY_S = 24 * 3600


class Packages(Protocol):
    """Who keeps the bottom packages."""

    def drop_packages(self, unused_since: float) -> int:
        """Delete those last asked for before this time (seconds since 1970); returns how many."""


async def sweep_hourly(settings: Settings, store: Store, deletions: Deletions, packages: Packages) -> None:
    """Sweep until cancelled. What fails, such as a disk that is read-only for now, is logged and tried again."""
    acting_from("the hourly sweep", "cloud")
    for hour in itertools.count():
        try:
            await asyncio.to_thread(sweep, settings, store, deletions, packages)
            if hour % 24 == 0 and (count := await asyncio.to_thread(deletions.drop_unnamed, time.time() - _DAY_S)):
                log.info("removed what interrupted writes left", extra={"files": count})
        except Exception as error:
            unknown = not isinstance(error, PrivTuneError | OSError)
            log.error("the sweep failed: %s", error, exc_info=unknown)
        await asyncio.sleep(_EVERY_S)


def sweep(settings: Settings, store: Store, deletions: Deletions, packages: Packages) -> None:
    """Complete deletions that a crash interrupted, then delete what is older than the settings keep."""
    now, jobs_days, packages_days = time.time(), settings.keep_jobs_days, settings.keep_packages_days
    jobs = deletions.sweep(None if jobs_days is None else int(now - jobs_days * _DAY_S))
    deletions.drop_events(int(now - settings.keep_events_days * _DAY_S))
    dropped = packages.drop_packages(now - packages_days * _DAY_S)
    if dropped:
        with store.write() as session:
            record(session, "packages.dropped", count=dropped, unused_days=packages_days)
    if settings.keep_audit_days is not None:
        prune(store, int(now - settings.keep_audit_days * _DAY_S))
    if jobs or dropped:
        log.info("deleted by age", extra={"jobs": jobs, "packages": dropped})
