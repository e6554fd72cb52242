"""One run's account: what the run may release enters the ledger before anything leaves, what it did when it ends."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from privtune.device.account.ledger import DELETED, LABELS, SLOPES, Ledger
from privtune.device.account.releasing import Outgoing, Releasing, store_facts
from privtune.device.account.slope_losses import slope_law, slope_losses
from privtune.device.account.transcript import Transcript
from privtune.device.data.batches import BatchPlan
from privtune.device.home.policy import Budget
from privtune.device.privacy.statements import LabelStatement, SlopeStatement
from privtune.device.release.label_store import LabelStore
from privtune.device.release.record_keys import RecordKey, content_fingerprint
from privtune.device.release.release_store import ReleaseStore, deleted_releases
from privtune.device.release.slope_store import SlopeStore
from privtune.shared.errors import JobConflict, PrivTuneError
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import TaughtBlocks

TRANSCRIPT = "transcript"
TAUGHT = "taught"  # kind of a note in the ledger
# Data sets of the ledger that are no files:
GENERATIONS = "generations"  # generated texts, prompts included
PREDICTIONS = "predictions"  # texts given to predict by themselves


@dataclass(frozen=True, kw_only=True)
class _Admission:
    id: str
    how: Releasing
    outgoing: Outgoing
    missing: list[RecordKey]


class Account:
    """Ledger and transcript of one run of a job. Use as a context manager around the link.

    Args:
        home: the device's folder.
        job_id: the job.
        cloud: the gateway's address.
        budget: for each data set.
        record_frames: see `Transcript`.
    """

    def __init__(self, home: Path, job_id: str, *, cloud: str, budget: Budget, record_frames: bool = False) -> None:
        self._home, self._job_id, self._cloud, self._budget = home, job_id, cloud, budget
        self._folder = home / "jobs" / job_id
        self.transcript = Transcript(self._folder / TRANSCRIPT, job_id, record_frames=record_frames)
        self._admissions: list[_Admission] = []

    def __enter__(self) -> Account:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A full disk must not hide what went wrong before.
        with contextlib.suppress(*(() if error is None else (PrivTuneError,))):
            end = self.transcript.close()
            if end is not None:
                with Ledger(self._home) as ledger:
                    ledger.note("transcript", {"job": self._job_id, **end})

    def admit(self, how: Releasing, one: Outgoing) -> str | None:
        """Enter what the run may newly release of a data set. Returns a warning for the owner, if there is one.

        Args:
            how: how the run releases.
            one: the data set.

        Raises:
            PolicyRefused: the budget does not allow it; then nothing may be sent.
            JobConflict: releases of these records were deleted here.
        """
        with Ledger(self._home) as ledger:
            warning = _rolled_back(ledger, how.store, "releases")
            keys = how.perturber.keys(one.data)
            stored = how.store.sizes(keys)
            deleted = sum(not found.bytes for found in stored.values())
            if deleted:
                raise deleted_releases(deleted)
            lengths = dict(zip(keys, how.perturber.lengths(one.data).tolist(), strict=True))
            missing = [key for key in keys if key not in stored]
            facts = {
                **self._facts(how),
                "source": one.source,
                "name": one.name,
                "part": one.part,
                "of_records": len(keys),
                "most_copies": 1 + max((key.index for key in keys), default=0),
                "records": len(missing),
                **(how.noises(missing) if one.source == PREDICTIONS else {}),
                **how.size(sum(lengths[key] for key in missing)),
                **how.cost(max((lengths[key] for key in missing), default=0)),
                **store_facts(how.store),
            }
            admission = ledger.admit(facts, self._budget)
        self._admissions.append(_Admission(id=admission, how=how, outgoing=one, missing=missing))
        return warning

    def note_taught(self, teaching: str, taught: TaughtBlocks) -> str:
        """Enter once which taught blocks the job begins with; a line that says so. Nothing was released for them."""
        named = taught.card.get("corpus")
        corpus = dict(named) if isinstance(named, dict) else {}
        facts = {
            "job": self._job_id,
            "teaching": teaching,
            "package_sha256": taught.sha256,
            "corpus": corpus,
        }
        with Ledger(self._home) as ledger:
            if not any(row["kind"] == TAUGHT and row["job"] == self._job_id for row in ledger.entries()):
                ledger.note(TAUGHT, facts)
        name, sha256 = (str(corpus.get(key, "unknown"))[:80] for key in ("name", "sha256"))
        return (
            f"begins with the blocks of {teaching}, taught on {name} (SHA-256 {sha256[:12]}); nothing of yours was used"
        )

    def settle(self) -> None:
        """Enter what was drawn of every admitted data set, and keep with the job what each of its records lost.

        The store of releases must still be open.
        """
        with Ledger(self._home) as ledger:
            while self._admissions:
                admission = self._admissions.pop()
                drawn = list(admission.how.store.sizes(admission.missing).values())
                rows = [found.rows for found in drawn]
                facts = {
                    "records": len(drawn),
                    "rows": sum(rows),
                    "bytes": sum(found.bytes for found in drawn),
                    **admission.how.cost(max(rows, default=0)),
                    **store_facts(admission.how.store),
                }
                ledger.settle(admission.id, facts)
                own = admission.how.own_losses(admission.outgoing)
                if own is not None:
                    own.save(self._folder)

    def admit_text(self, how: Releasing, *, prompt: Sequence[int], rows: int, length: int) -> tuple[str, str | None]:
        """Enter a text that is about to be generated. Returns the entry's id, and a warning if there is one.

        Each answer is a record of its own: each of several answers to one prompt reveals something of the prompt.

        Args:
            how: how the run releases.
            prompt: token ids that it begins with.
            rows: the most rows that are drawn for it.
            length: the most rows of the whole text, prompt included.

        Raises:
            PolicyRefused: the budget does not allow it; then nothing may be sent.
        """
        with Ledger(self._home) as ledger:
            warning = _rolled_back(ledger, how.store, "rows of generated texts")
            facts = {
                **self._facts(how),
                "source": GENERATIONS,
                "name": GENERATIONS,
                "part": "predict",
                "of_records": 1,
                "most_copies": 1,
                **how.noises([RecordKey(0, content_fingerprint(prompt))]),
                **how.text_facts(rows, length),
            }
            return ledger.admit(facts, self._budget), warning

    def settle_text(self, admission: str, how: Releasing, *, rows: int, length: int) -> None:
        """Enter how many rows of an admitted text were drawn, and its final length in rows."""
        with Ledger(self._home) as ledger:
            ledger.settle(admission, how.text_facts(rows, length))

    def admit_labels(
        self,
        spec: JobSpec,
        statement: LabelStatement,
        store: LabelStore,
        keys: list[bytes],
        *,
        source: str,
        names: tuple[str, ...],
    ) -> tuple[str, str | None]:
        """Enter that records train on randomised labels. Returns the entry's id, and a warning if there is one.

        Args:
            spec: the job.
            statement: what the randomised labels guarantee.
            store: where their draws are.
            keys: of the records, from `label_keys`.
            source: which data set it is, from `source_of`.
            names: of the labels. Among other labels, or in another store, a record's draw is independent and adds up.
        """
        with Ledger(self._home) as ledger:
            warning = _rolled_back(ledger, store, "randomised labels")
            facts = {
                "job": self._job_id,
                "cloud": self._cloud,
                "source": source,
                "name": spec.training_file,
                "part": LABELS,
                "law": hashlib.sha256(repr((LABELS, store.identity, names)).encode()).hexdigest(),
                "mechanism": "randomised labels",
                "params": {"epsilon": statement.epsilon, "classes": statement.classes},
                "model": spec.model,
                "cut": spec.cut,
                "statement": {"row": LABELS, "guarantee": "none" if statement.unsafe_seed else "pure"},
                "claim": statement.lines()[0],
                "seed": "fixed" if statement.unsafe_seed else "os",
                "labels": spec.labels,
                "of_records": len(keys),
                "records": store.missing(keys, statement.epsilon),
                "rows": 0,
                "bytes": 0,
                "epsilon": None if statement.unsafe_seed else statement.epsilon,
                "delta": 0.0,
                **store_facts(store),
            }
            return ledger.admit(facts, Budget()), warning

    def settle_labels(self, admission: str, store: LabelStore) -> None:
        """Enter that the labels of an entry were drawn."""
        with Ledger(self._home) as ledger:
            ledger.settle(admission, store_facts(store))

    def admit_slopes(
        self, spec: JobSpec, statement: SlopeStatement, store: SlopeStore, *, records: int, source: str
    ) -> str:
        """Enter that a job's slopes may leave, for all its steps. Returns the entry's id.

        Raises PolicyRefused, and JobConflict for an older copy of the store: steps would be drawn a second time, and
        the cloud could average both draws.
        """
        facts = {
            "job": self._job_id,
            "cloud": self._cloud,
            "source": source,
            "name": spec.training_file,
            "part": SLOPES,
            "law": slope_law(store),
            "mechanism": "slopes",
            "params": {"epsilon": statement.epsilon, "clip": statement.clip, "times": statement.times},
            "model": spec.model,
            "cut": spec.cut,
            "statement": {"row": SLOPES, "guarantee": "none" if statement.unsafe_seed else "approximate"},
            "claim": statement.lines()[0],
            "seed": "fixed" if statement.unsafe_seed else "os",
            "labels": spec.labels,
            "of_records": records,
            "records": records,
            "rows": 0,
            "bytes": 0,
            "epsilon": None if statement.unsafe_seed else statement.epsilon,
            "delta": statement.delta,
            **store_facts(store),
        }
        with Ledger(self._home) as ledger:
            if _lost(ledger, store) > 0:
                raise JobConflict(
                    f"{store.path} lacks slopes that this job has sent; restore it, or start a new job (--new)"
                )
            return ledger.admit(facts, self._budget)

    def settle_slopes(
        self, admission: str, statement: SlopeStatement, store: SlopeStore, plan: BatchPlan, one: Outgoing
    ) -> None:
        """Enter how many slopes were drawn and what they cost, and keep with the job what each record lost by them.

        plan: of the training records, those of `one`.
        """
        times = plan.times(store.size)
        epsilon = None if statement.unsafe_seed else statement.epsilon_after(times) if times else 0.0
        with Ledger(self._home) as ledger:
            ledger.settle(admission, {"epsilon": epsilon, "slopes": store.size, **store_facts(store)})
        own = slope_losses(statement, store, plan, one)
        if own is not None:
            own.save(self._folder)

    def _facts(self, how: Releasing) -> dict[str, Any]:
        return {"job": self._job_id, "cloud": self._cloud, **how.facts()}


def source_of(path: str) -> str:
    """Which data set a path or hub id means: the resolved path of a file, so that two names for it share a budget."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path


def _lost(ledger: Ledger, store: ReleaseStore | LabelStore | SlopeStore) -> int:
    """How many draws fewer the store holds than the ledger has seen in it."""
    here, expected = (store.identity, store.fingerprint), 0
    for entry in ledger.entries():
        if (entry.get("store"), entry.get("scope")) != here:
            continue
        if entry["kind"] == DELETED:
            expected -= entry["forgotten"]
        else:
            expected = max(expected, entry.get("store_records", 0))
    return expected - store.size


def _rolled_back(ledger: Ledger, store: ReleaseStore | LabelStore, what: str) -> str | None:
    """A warning if an older copy of the store was put back; what it holds from here on counts again."""
    lost, identity = _lost(ledger, store), store.identity
    if lost <= 0:
        return None
    store.renew_identity()
    ledger.note("store-rolled-back", {"store": identity, "scope": store.fingerprint, "lost": lost})
    return (
        f"the store of {what} has lost {lost} {what} (an older copy?): their records are drawn a second time, and the "
        "cloud can average both draws; the ledger counts them again"
    )
