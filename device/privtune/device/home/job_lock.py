"""One process per job on this device: whoever works on a job holds `home/jobs/JOB/lock`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from privtune.device.home.paths import job_path, private_folder
from privtune.shared.errors import JobConflict, StorageFull
from privtune.shared.files import finish_removals, held


@contextmanager
def job_lock(home: Path, job_id: str) -> Iterator[None]:
    """Hold the job against other processes of this device.

    Raises JobConflict when another process holds it, StorageFull when the lock file can't be created or locked.
    """
    folder = job_path(home, job_id)
    with ExitStack() as stack:
        try:
            private_folder(home)
            finish_removals(home / "jobs")
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            mine = stack.enter_context(held(folder / "lock"))
        except OSError as error:
            raise StorageFull(f"{folder} can't be locked: {error.strerror}; set --home to another folder.") from None
        if not mine:
            raise JobConflict(f"Another process on this machine is working on job {job_id} already.")
        yield
