"""What the device keeps of a job and never sends: label names, its secrets, the owner's terms, checkpoints, the report.

home/jobs/JOB/job.json        what is needed to resume the job or to predict with it
home/jobs/JOB/request.json    what the owner asked for (`run_request`)
home/jobs/JOB/lock            held by the process that works on the job (`job_lock`)
home/jobs/JOB/checkpoints/    head, tail and their optimiser
home/jobs/JOB/states.sqlite   with a tail: what the cloud computed for each record, until the job is done
home/jobs/JOB/slopes.sqlite   the noised slopes of a zeroth-order job (`release.slope_store`)
home/jobs/JOB/losses/         what each released record really lost (`account.own_losses`)
home/jobs/JOB/evaluations.json what the held-out records said, by step
home/jobs/JOB/spot_checks.json what was checked of the cloud's work, and the states that it named
home/jobs/JOB/evidence/       what shows that the cloud cheated
home/jobs/JOB/report.json     figures of the finished run
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from privtune.device.data.batches import IndexArray
from privtune.device.data.encode import EncodedDataset
from privtune.device.data.prompts import PromptForm
from privtune.device.surrogates.surrogates import SECRET_BYTES, Surrogates
from privtune.shared.at_rest import read_text
from privtune.shared.errors import DataInvalid, JobConflict, JobNotFound, StorageFull
from privtune.shared.files import make_folder, write_json
from privtune.shared.job_spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What `job.json` holds.

    spec: the job as the cloud has it.
    label_names: names of the classes, in their numbers' order; empty for a language model.
    data_fingerprint: of the encoded training data.
    order_secret: seed that shuffles whatever is sent, so that a handle or the order of sending reveals nothing about a
        record's place in the file. (A file sorted by label would otherwise give its labels away: the cloud knows the
        seed of the data order.)
    local_model: the owner's own copy of the model; None for the bottom that the cloud serves.
    prompt: how a language model's records were written; None for a classifier.
    surrogate_secret: from which the surrogates of each record and conversation are drawn, 32 random bytes in hex.
        Without it nobody can tell, or undo, what a surrogate stands for.
    own_terms: the owner's words and phrases that are always replaced.
    surrogate_fingerprint: of the rules that the records were replaced by; empty where nothing is replaced.
    taught_sha256: of the package with the taught blocks that the job began with; empty without.
    holder: random, for this job alone; it says to the cloud that the device which comes back is the one that holds it.
    kept_step: of a job with early stopping: the step whose state this device has chosen as the model; None before that.
    final_step: steps after which the finished job's model was trained; None before that.
    """

    spec: JobSpec
    label_names: tuple[str, ...]
    data_fingerprint: str
    order_secret: int
    local_model: str | None
    prompt: PromptForm | None = None
    surrogate_secret: str = field(default_factory=lambda: secrets.token_hex(SECRET_BYTES))
    own_terms: tuple[str, ...] = ()
    surrogate_fingerprint: str = ""
    taught_sha256: str = ""
    holder: str = field(default_factory=lambda: secrets.token_hex(16))
    kept_step: int | None = None
    final_step: int | None = None

    def surrogates(self) -> Surrogates | None:
        """The job's surrogates; None where its texts leave as they are. Raises InvalidInput without their packages."""
        if not self.spec.surrogates.on:
            return None
        return Surrogates(self.spec.surrogates, bytes.fromhex(self.surrogate_secret), self.own_terms)

    def order(self, records: int) -> IndexArray:
        """The secret permutation of the training records."""
        return np.random.default_rng(self.order_secret).permutation(records)

    def order_of(self, data: EncodedDataset) -> IndexArray:
        """The secret permutation of records that are not trained on, or of prompts; other data has another one."""
        return np.random.default_rng([self.order_secret, int(data.fingerprint, 16)]).permutation(len(data))

    def shuffled(self, data: EncodedDataset) -> EncodedDataset:
        """The records in the order of `order_of`."""
        return data.pick(self.order_of(data))


class JobFolder:
    """One job's files on this device; every write is whole or not at all."""

    def __init__(self, home: Path, job_id: str) -> None:
        self.path = home / "jobs" / job_id
        self.job_id = job_id
        self.checkpoints = self.path / "checkpoints"
        self.states = self.path / "states.sqlite"

    def exists(self) -> bool:
        """Whether this device has worked on the job before."""
        return (self.path / "job.json").exists()

    def load(self) -> JobState:
        """The job's state. Raises JobNotFound when this device does not hold it, DataInvalid when it is damaged."""
        try:
            raw = json.loads(read_text(self.path / "job.json"))
            spec = JobSpec.model_validate(raw.pop("spec"))
            prompt = raw.pop("prompt")
            form = None if prompt is None else PromptForm(**prompt)
            names, terms = tuple(raw.pop("label_names")), tuple(raw.pop("own_terms"))
            return JobState(spec=spec, label_names=names, prompt=form, own_terms=terms, **raw)
        except FileNotFoundError:
            raise JobNotFound(
                f"this device holds nothing of job {self.job_id}: it was deleted here, or its head and noise are on "
                "another device"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataInvalid(f"{self.path / 'job.json'} can't be read; restore it from a backup") from error

    def holder(self) -> str:
        """By which the cloud knows this device in this job; empty before it has begun the job."""
        return self.load().holder if self.exists() else ""

    def begin(
        self,
        spec: JobSpec,
        label_names: tuple[str, ...],
        local_model: str | None,
        own_terms: tuple[str, ...] = (),
    ) -> JobState:
        """The state of a job that is resumed, or of a new one with fresh secrets, which `hold` stores.

        Raises JobConflict if the description or the owner's terms have changed.
        """
        if not self.exists():
            return JobState(
                spec=spec,
                label_names=label_names,
                data_fingerprint="",
                order_secret=secrets.randbits(128),
                local_model=local_model,
                own_terms=own_terms,
            )
        state = self.load()
        if state.spec != spec:
            raise JobConflict(f"job {self.job_id} no longer has the description it started with; start a new job")
        if state.own_terms != own_terms:
            raise JobConflict(
                f"your own terms differ from those that job {self.job_id} started with; restore their file or start a "
                "new job (--new)"
            )
        return state

    def hold(self, state: JobState) -> None:
        """Store the state of a new job, its records known, or hold a job that is resumed to the state it has.

        Raises JobConflict if the data, what replaces them, or the taught blocks have changed.
        """
        if not self.exists():
            self.save(state)
            return
        known = self.load()
        if known.taught_sha256 != state.taught_sha256:
            raise JobConflict(
                f"the cloud's taught blocks are not those that job {self.job_id} started with; start a new job (--new)"
            )
        if known.surrogate_fingerprint != state.surrogate_fingerprint:
            raise JobConflict(
                f"the recognisers or tables of surrogates are not those that job {self.job_id} started with, and its "
                "records would be replaced in a second way; install the versions of then or start a new job (--new)"
            )
        if known.data_fingerprint != state.data_fingerprint:
            raise JobConflict(
                f"the data differs from what job {self.job_id} started with, so it can't be resumed; "
                "restore the file or start a new job (--new)"
            )

    def save(self, state: JobState) -> None:
        """Replace the state."""
        facts = asdict(state) | {"spec": state.spec.model_dump(mode="json")}
        self.write_json("job.json", facts)

    def keep_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Store what the held-out records said after a step; what they said later on belongs to a run taken back."""
        known = self.evaluations(step - 1) | {step: metrics}
        self.write_json("evaluations.json", {str(at): figures for at, figures in known.items()})

    def evaluations(self, steps: int) -> dict[int, dict[str, float]]:
        """What they said during the first steps, as far as that is known, oldest first."""
        with suppress(OSError, ValueError, TypeError, AttributeError):
            kept = json.loads(read_text(self.path / "evaluations.json"))
            known = {int(at): dict(figures) for at, figures in kept.items()}
            return {at: known[at] for at in sorted(known) if at <= steps}
        return {}

    def evaluation(self, step: int) -> dict[str, float]:
        """What they said after this step; empty if that is not known."""
        return self.evaluations(step).get(step, {})

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Replace a JSON file of the job. Raises StorageFull, which leaves the old one as it was."""
        try:
            make_folder(self.path, 0o700)
            write_json(self.path / name, value)
        except OSError as error:
            raise StorageFull(f"{self.path} can't be written: {error.strerror}; free room and run again") from error
