"""One run's account: what it may release is entered in the ledger before anything leaves, what it did when it ends."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from privtune.device.account.ledger import LABELS, Ledger, outcomes
from privtune.device.account.transcript import Transcript
from privtune.device.data.encode import EncodedDataset
from privtune.device.home.policy import Budget
from privtune.device.privacy.statements import LabelStatement, Statement
from privtune.device.release.label_store import LabelStore
from privtune.device.release.perturber import Perturber
from privtune.device.release.release_store import RecordKey, ReleaseStore
from privtune.shared.codec import BYTES_PER_ELEMENT
from privtune.shared.errors import PrivTuneError
from privtune.shared.job_spec import JobSpec

TRANSCRIPT = "transcript"
GENERATIONS = "generations"  # the ledger's data set of texts that were generated, prompts included
PREDICTIONS = "predictions"  # the ledger's data set of texts that were given to predict


@dataclass(frozen=True, kw_only=True)
class Releasing:
    """How a run releases: its store and perturber, what may be claimed, and the width D of a vector."""

    spec: JobSpec
    store: ReleaseStore
    perturber: Perturber
    statement: Statement
    width: int

    @property
    def law(self) -> str:
        """Names the law of noise and the store: under one of these a record has one draw at most."""
        parts = (self.store.fingerprint, self.store.identity, str(self.spec.train.max_length))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Admission:
    id: str
    how: Releasing
    missing: list[RecordKey]


class Account:
    """The ledger's and the transcript's side of one run of a job. Use as a context manager around the link.

    budget: for each data set; None: no limit. cloud: the gateway's address. record_frames: see `Transcript`.
    """

    def __init__(
        self, home: Path, job_id: str, *, cloud: str, budget: Budget | None, record_frames: bool = False
    ) -> None:
        self._home, self._job_id, self._cloud, self._budget = home, job_id, cloud, budget or Budget()
        folder = home / "jobs" / job_id / TRANSCRIPT
        self.transcript = Transcript(folder, job_id, record_frames=record_frames)
        self._admissions: list[_Admission] = []

    def __enter__(self) -> Account:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A disk that is full must not hide what went wrong before.
        with contextlib.suppress(*(() if error is None else (PrivTuneError,))):
            end = self.transcript.close()
            if end is not None:
                self._note_transcript(end)

    def admit(self, how: Releasing, data: EncodedDataset, *, source: str, name: str, part: str) -> str | None:
        """Enter what `data` may release anew; a warning for the owner, if there is one.

        source: which data set it is (`source_of`); name: as the cloud knows it; part: train, validation or predict.
        Raises PolicyRefused when the budget does not allow it; then nothing may be sent.
        """
        ledger = Ledger(self._home)
        try:
            warning = _rolled_back(ledger, how.store, "releases")
            keys = how.perturber.keys(data)
            held = how.store.held(keys)
            lengths = dict(zip(keys, data.lengths.tolist(), strict=True))
            missing = [key for key in keys if key not in held]
            rows = sum(lengths[key] for key in missing)
            facts = {
                **self._facts(how),
                "source": source,
                "name": name,
                "part": part,
                "of_records": len(keys),
                "most_copies": 1 + max((key.index for key in keys), default=0),
                "records": len(missing),
                "rows": rows,
                "bytes": rows * how.width * BYTES_PER_ELEMENT[how.spec.codec],
                **_cost(how.statement, max((lengths[key] for key in missing), default=0)),
                **_store_facts(how.store),
            }
            admission = ledger.admit(facts, self._budget)
        finally:
            ledger.close()
        self._admissions.append(_Admission(id=admission, how=how, missing=missing))
        return warning

    def admit_text(self, how: Releasing, *, rows: int, length: int) -> tuple[str, str | None]:
        """Enter a text that is about to be written: the entry's id, and a warning if there is one.

        rows: drawn anew at most; length: rows of the whole text at most. Raises as `admit`. Each answer is a record of
        its own: of several answers to one prompt each tells of the prompt.
        """
        ledger = Ledger(self._home)
        try:
            warning = _rolled_back(ledger, how.store, "rows of generated texts")
            facts = {
                **self._facts(how),
                "source": GENERATIONS,
                "name": GENERATIONS,
                "part": "predict",
                "of_records": 1,
                "most_copies": 1,
                **_text_facts(how, rows, length),
            }
            return ledger.admit(facts, self._budget), warning
        finally:
            ledger.close()

    def settle_text(self, admission: str, how: Releasing, *, rows: int, length: int) -> None:
        """Enter how many rows of a text were drawn anew, and of how many it was in the end."""
        ledger = Ledger(self._home)
        try:
            ledger.settle(admission, _text_facts(how, rows, length))
        finally:
            ledger.close()

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
        """Enter that these records train with randomised labels: the entry's id, and a warning if there is one.

        names: of the labels; among other labels, or in another store, a record's draw is independent and adds up.
        """
        ledger = Ledger(self._home)
        try:
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
                **_store_facts(store),
            }
            return ledger.admit(facts, Budget()), warning
        finally:
            ledger.close()

    def settle_labels(self, admission: str, store: LabelStore) -> None:
        """Enter that the labels of an entry were drawn."""
        ledger = Ledger(self._home)
        try:
            ledger.settle(admission, _store_facts(store))
        finally:
            ledger.close()

    def settle(self) -> None:
        """Enter what was drawn. The store of releases must still be open."""
        ledger = Ledger(self._home)
        try:
            while self._admissions:
                admission = self._admissions.pop()
                drawn = list(admission.how.store.held(admission.missing).values())
                rows = [count for count, _ in drawn]
                facts = {
                    "records": len(drawn),
                    "rows": sum(rows),
                    "bytes": sum(size for _, size in drawn),
                    **_cost(admission.how.statement, max(rows, default=0)),
                    **_store_facts(admission.how.store),
                }
                ledger.settle(admission.id, facts)
        finally:
            ledger.close()

    def _facts(self, how: Releasing) -> dict[str, Any]:
        """What an admission says of the job and of its noise."""
        return {
            "job": self._job_id,
            "cloud": self._cloud,
            "law": how.law,
            "mechanism": how.spec.mechanism.name,
            "params": dict(how.spec.mechanism.params),
            "model": how.spec.model,
            "cut": how.spec.cut,
            "statement": {"row": how.statement.row, "guarantee": how.statement.guarantee},
            "claim": how.statement.text,
            "seed": "fixed" if how.statement.unsafe_seed else "os",
            "labels": how.spec.labels,
            "label_epsilon": how.spec.label_epsilon,
            "gradients": "none leave" if how.spec.tail else "leave",
        }

    def _note_transcript(self, end: dict[str, Any]) -> None:
        ledger = Ledger(self._home)
        try:
            ledger.note("transcript", {"job": self._job_id, **end})
        finally:
            ledger.close()


def source_of(path: str) -> str:
    """Which data set a path or hub id means: the real place of a file, so that two names for it share a budget."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path


def _cost(statement: Statement, rows: int) -> dict[str, Any]:
    """Worst-case loss of the longest record; epsilon None where no bound is claimed."""
    return {"epsilon": statement.record_epsilon(rows) if rows else 0.0, "delta": statement.delta if rows else 0.0}


def _text_facts(how: Releasing, rows: int, length: int) -> dict[str, Any]:
    return {
        "records": int(rows > 0),
        "rows": rows,
        "bytes": rows * how.width * BYTES_PER_ELEMENT[how.spec.codec],
        **_cost(how.statement, length if rows else 0),
        **_store_facts(how.store),
    }


def _store_facts(store: ReleaseStore | LabelStore) -> dict[str, Any]:
    return {"store": store.identity, "scope": store.fingerprint, "store_records": store.size}


def _rolled_back(ledger: Ledger, store: ReleaseStore | LabelStore, what: str) -> str | None:
    """Notice a store that holds fewer than the ledger saw: an older copy was put back."""
    here = (store.identity, store.fingerprint)
    seen = [row["store_records"] for row in outcomes(ledger.entries()) if (row["store"], row["scope"]) == here]
    lost = max(seen, default=0) - store.size
    if lost <= 0:
        return None
    store.renew_identity()
    ledger.note("store-rolled-back", {"store": here[0], "scope": here[1], "lost": lost})
    return (
        f"the store of {what} has lost {lost} {what} (an older copy?): their records are drawn anew, which the "
        "cloud can average with what it has; the ledger counts them again"
    )
