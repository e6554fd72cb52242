"""The device's own folder: where jobs, packages, releases and the log live, and which process works on a job.

home/jobs/JOB/request.json   how `privtune finetune` was asked, so that `--job` needs nothing else
home/jobs/JOB/lock           held by the process that works on the job
home/privtune.log            details of failures; private, never sent
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privtune.shared.errors import DataInvalid, InvalidInput, JobConflict, StorageFull

if TYPE_CHECKING:
    from privtune.device.data.source import DataSource
    from privtune.shared.job_spec import JobSpec

HOME_VARIABLE = "PRIVTUNE_HOME"
_JOB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")


def default_home() -> Path:
    """$PRIVTUNE_HOME, or ~/.privtune."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".privtune").expanduser()


def check_job_id(job_id: str) -> str:
    """The id itself; InvalidInput if it can't be one (it names folders here, and may come from the cloud)."""
    if not _JOB_ID.fullmatch(job_id):
        raise InvalidInput(f"{job_id[:80]!r} is not a job id; `privtune jobs list` shows yours.", param="job")
    return job_id


def holds_job(home: Path, job_id: str) -> bool:
    """Whether this device has worked on the job before."""
    return (home / "jobs" / check_job_id(job_id) / "job.json").exists()


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What the owner asked `privtune finetune` for. `spec` is what the cloud was given."""

    cloud: str
    spec: JobSpec
    train: DataSource
    validation: DataSource | None
    local_model: str | None = None

    def same_work(self, other: RunRequest) -> bool:
        """Whether both ask for the same training of the same data; the handles are drawn anew each time."""
        unnamed = {"training_file": "device://any", "validation_file": None}
        one, two = (replace(request, spec=request.spec.model_copy(update=unnamed)) for request in (self, other))
        return one == two

    def save(self, home: Path, job_id: str) -> None:
        """Remember it; StorageFull when it can't be written."""
        from privtune.device.home.job_folder import JobFolder

        facts = asdict(replace(self, spec=None)) | {"spec": self.spec.model_dump(mode="json")}  # type: ignore[arg-type]
        JobFolder(home, check_job_id(job_id)).write_json("request.json", facts)

    @classmethod
    def load(cls, home: Path, job_id: str) -> RunRequest | None:
        """What was saved for a job; None if nothing was, DataInvalid if the file is damaged."""
        from privtune.shared.job_spec import JobSpec

        file = home / "jobs" / check_job_id(job_id) / "request.json"
        try:
            facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            spec = JobSpec.model_validate(facts.pop("spec"))
            train, validation = _source(facts.pop("train")), facts.pop("validation")
            return cls(spec=spec, train=train, validation=_source(validation) if validation else None, **facts)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            raise DataInvalid(f"{file} can't be read; give --data and the other options again with --new.") from None


def _source(facts: dict[str, Any]) -> DataSource:
    from privtune.device.data.records import Columns
    from privtune.device.data.source import DataSource

    return DataSource(columns=Columns(**facts.pop("columns")), **facts)


def unfinished(home: Path, request: RunRequest) -> list[str]:
    """Ids of jobs here that ask for the same work and have not come to their end, the newest first."""
    found = []
    for file in (home / "jobs").glob("*/request.json"):
        job_id = file.parent.name
        try:
            before = RunRequest.load(home, job_id)
        except (DataInvalid, InvalidInput):
            continue  # a damaged or older file is no reason not to start a new job
        if before is not None and before.same_work(request) and not _finished(file.parent):
            found.append((file.stat().st_mtime, job_id))
    return [job_id for _, job_id in sorted(found, reverse=True)]


def _finished(folder: Path) -> bool:
    try:
        state = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("final_step") is not None


@contextmanager
def job_lock(home: Path, job_id: str) -> Iterator[None]:
    """Hold the job against other processes of this device. Raises JobConflict when one has it."""
    try:
        import fcntl
    except ImportError:  # Windows: the cloud still fences off the older session
        yield
        return
    folder = home / "jobs" / check_job_id(job_id)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise StorageFull(f"{folder} can't be written: {error.strerror}; set --home to a folder that can.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JobConflict(f"Another process on this machine is working on job {job_id} already.") from None
        yield


def log_failure(home: Path, text: str) -> Path | None:
    """Append to the private log; None if not even that can be written."""
    file = home / "privtune.log"
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as log:
            log.write(text.rstrip() + "\n")
    except OSError:
        return None
    return file
