"""What an owner asked `privtune finetune` for, in `home/jobs/JOB/request.json`: a job is found and resumed by it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from privtune.device.data.records import Columns
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder
from privtune.device.home.paths import check_job_id, job_path
from privtune.shared.at_rest import read_text
from privtune.shared.errors import DataInvalid, InvalidInput
from privtune.shared.job_spec import JobSpec

REQUEST = "request.json"


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A job as its owner asked for it here.

    cloud: address of the cloud's REST API.
    spec: what the cloud was given.
    train: the training records.
    validation: the held-out records; None without any.
    local_model: the owner's own copy of the model; None for the bottom that the cloud serves.
    spot_checks: share of the cloud's work that is computed here as well.
    share_figures: the cloud may know loss and figures.
    another_noise: the owner allows another noise distribution than the data had before.
    own_loop: it trains in a loop of the owner's (`privtune.device.client.remote_top`).
    """

    cloud: str
    spec: JobSpec
    train: DataSource
    validation: DataSource | None
    local_model: str | None = None
    another_noise: bool = False
    spot_checks: float = 0.0
    share_figures: bool = False
    own_loop: bool = False

    def same_work(self, other: RunRequest) -> bool:
        """Whether both ask for the same training of the same data; handles are drawn at random each time."""
        unnamed = {"training_file": "device://any", "validation_file": None}
        beside: dict[str, Any] = {"another_noise": False, "spot_checks": 0.0, "share_figures": False}
        one, two = (
            replace(request, spec=request.spec.model_copy(update=unnamed), **beside) for request in (self, other)
        )
        return one == two

    def save(self, home: Path, job_id: str) -> None:
        """Store the request with its job. Raises StorageFull."""
        train, validation = _stored(self.train), None if self.validation is None else _stored(self.validation)
        rest = asdict(replace(self, spec=None, train=None, validation=None))  # type: ignore[arg-type]
        facts = rest | {"spec": self.spec.model_dump(mode="json"), "train": train, "validation": validation}
        JobFolder(home, check_job_id(job_id)).write_json(REQUEST, facts)

    @classmethod
    def load(cls, home: Path, job_id: str) -> RunRequest | None:
        """The stored request of a job; None if there is none. Raises DataInvalid if the file is damaged."""
        file = job_path(home, job_id) / REQUEST
        try:
            facts: dict[str, Any] = json.loads(read_text(file))
            spec = JobSpec.model_validate(facts.pop("spec"))
            train, validation = _source(facts.pop("train")), facts.pop("validation")
            return cls(spec=spec, train=train, validation=_source(validation) if validation else None, **facts)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            raise DataInvalid(f"{file} can't be read; give --data and the other options again with --new.") from None


def unfinished(home: Path, request: RunRequest) -> list[str]:
    """Ids of jobs on this device that ask for the same work and have not ended, newest first."""
    found = []
    for file in (home / "jobs").glob(f"*/{REQUEST}"):
        job_id = file.parent.name
        try:
            before = RunRequest.load(home, job_id)
        except (DataInvalid, InvalidInput):
            continue  # a damaged file is no reason not to start a new job
        if before is not None and before.same_work(request) and not _finished(file.parent):
            found.append((file.stat().st_mtime, job_id))
    return [job_id for _, job_id in sorted(found, reverse=True)]


def _stored(source: DataSource) -> dict[str, Any]:
    """What describes a data set; records in memory stay there."""
    facts = asdict(replace(source, table=None))
    del facts["table"]
    return facts


def _source(facts: dict[str, Any]) -> DataSource:
    return DataSource(columns=Columns(**facts.pop("columns")), **facts)


def _finished(folder: Path) -> bool:
    try:
        state = json.loads(read_text(folder / "job.json"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("final_step") is not None
