"""Where the device's files are: its home folder, and a folder for each job."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from privtune.shared.errors import InvalidInput
from privtune.shared.files import make_folder

HOME_VARIABLE = "PRIVTUNE_HOME"
_JOB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")


def default_home() -> Path:
    """$PRIVTUNE_HOME, or ~/.privtune."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".privtune").expanduser()


def private_folder(home: Path) -> bool:
    """Make the device's home folder for its owner's eyes only, and close one that others can read.

    False when its mode can't be changed: it is another user's, or shared (sticky) like /tmp. Raises OSError when it
    can't be made.
    """
    make_folder(home, 0o700)
    mode = home.stat().st_mode
    if mode & 0o077 and not mode & stat.S_ISVTX:
        with contextlib.suppress(PermissionError):
            home.chmod(0o700)
    return not home.stat().st_mode & 0o077


def check_job_id(job_id: str) -> str:
    """The id itself. Raises InvalidInput if it can't be one: it names a folder here, and may come from the cloud."""
    if not _JOB_ID.fullmatch(job_id):
        raise InvalidInput(f"{job_id[:80]!r} is not a job id; `privtune jobs list` shows yours.", param="job")
    return job_id


def job_path(home: Path, job_id: str) -> Path:
    """The folder of a job, which may not exist yet. Raises InvalidInput as `check_job_id`."""
    return home / "jobs" / check_job_id(job_id)


def holds_job(home: Path, job_id: str) -> bool:
    """Whether this device has worked on the job before."""
    return (job_path(home, job_id) / "job.json").exists()
