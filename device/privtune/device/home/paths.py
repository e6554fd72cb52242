"""Where the device's files are: its home folder, and a folder for each job."""

from __future__ import annotations

import os
import re
from pathlib import Path

from privtune.shared.errors import InvalidInput

HOME_VARIABLE = "PRIVTUNE_HOME"
_JOB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")


def default_home() -> Path:
    """$PRIVTUNE_HOME, or ~/.privtune."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".privtune").expanduser()


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
