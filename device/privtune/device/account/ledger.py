"""The ledger: what every job released from this device, and what it cost. Append-only, chained, one file a device.

Two entries a run and data set: `admitted`, written BEFORE anything may be drawn or sent, with the most that the run can
release anew, and `released`, with what it did. A run that was killed has only the first and counts in full, until the
job's next run finds in the store of releases what was drawn.

What is counted (`Spent`), for each data set:
* releases: records drawn. A release that is sent again, to whatever cloud, is the same bytes and costs nothing.
* jobs: those that drew at least one release.
* label nats: the largest epsilon of the randomised labels that jobs trained with, as one store chains them (see
  device/labels.py), added over stores and sets of label names. None once a job's gradients told labels, or texts, as
  they are.
* nats a record: the largest loss of a record under each law of noise, ADDED over the laws (sequential composition; the
  deltas add too). Under one law (mechanism, model, cut, codec, length limit, store) a record is drawn once, so later
  jobs add nothing for it. Undefined as soon as one job had no bound: then it is `None`, never a number.

Not covered: equal texts in one data set are records of their own (k copies of a text tell k times as much), an edited
text is a new record, gradients and labels as they are are not releases, a copy of a file under another path is another
data set.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privtune.device.account.hash_chain import chained, genesis
from privtune.shared.errors import ArtifactCorrupt, PolicyRefused
from privtune.shared.sqlite import open_private, sqlite_errors, transaction

if TYPE_CHECKING:
    from privtune.device.home.policy import Budget

FILE = "ledger.sqlite"
LABELS = "labels"  # the part of a data set that an entry on randomised labels is about
Json = dict[str, Any]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, body TEXT NOT NULL, chain TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (only INTEGER PRIMARY KEY CHECK (only = 0), id TEXT NOT NULL);
INSERT OR IGNORE INTO ledger VALUES (0, lower(hex(randomblob(16))));
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What the releases of one data set cost so far. `nats`: the most that any record lost; None: no bound."""

    releases: int = 0
    jobs: int = 0
    nats: float | None = 0.0
    delta: float = 0.0
    label_nats: float | None = 0.0


class Ledger:
    """The device's ledger, `home/ledger.sqlite` (mode 0600, made if missing).

    Safe to use from several processes; an entry is on disk when its call returns. Raises StorageFull, JobConflict
    (locked) and ArtifactCorrupt (damaged, or the chain is broken).
    """

    def __init__(self, home: Path) -> None:
        self.path = home / FILE
        with self._errors():
            self._db = open_private(self.path, _SCHEMA)
            self._genesis = genesis("ledger", self._db.execute("SELECT id FROM ledger").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def entries(self) -> list[Json]:
        """Every entry, oldest first, after the chain was checked."""
        with self._errors():
            return self._read()

    @property
    def head(self) -> str:
        """The hash of the last entry: note it elsewhere to notice a ledger that was made anew."""
        with self._errors():
            return self._last()

    def holds(self, head: str) -> bool:
        """Whether a hash that was noted is one of this ledger's."""
        with self._errors():
            row = self._db.execute("SELECT 1 FROM entries WHERE chain = ?", (head,)).fetchone()
            return row is not None or head == self._genesis

    def admit(self, facts: Json, budget: Budget) -> str:
        """Enter what a run may release anew of one data set; the entry's id.

        facts: at least source, job, part, law, records (drawn anew at most), epsilon (of the costliest record; None:
        no bound) and delta. An earlier run of the same job that was killed is settled first by `records`: what is
        still missing was not drawn by it. Raises PolicyRefused, and enters the refusal, when the budget is too small.
        """
        with self._transaction() as entries:
            for gone in _unsettled(entries, facts):
                drawn = max(0, gone["records"] - facts["records"])
                self._append({"kind": "released", "admission": gone["id"], "records": drawn, "recovered": True})
            facts = {"kind": "admitted", "id": uuid.uuid4().hex, **facts}
            before = self._read()
            now, after = spent(before, facts["source"]), spent([*before, facts], facts["source"])
            reason = refusal(now, after, budget) if facts["records"] else None
            if reason is None:
                self._append(facts)
                return str(facts["id"])
            self._append(facts | {"kind": "refused", "reason": reason})
        raise PolicyRefused(f"The device's privacy budget for this data set does not allow the job: {reason}.")

    def settle(self, admission: str, facts: Json) -> None:
        """Enter what a run did release: records, and epsilon and delta of the costliest."""
        with self._transaction():
            self._append({"kind": "released", "admission": admission, **facts})

    def note(self, kind: str, facts: Json) -> None:
        """Enter anything else that an owner should know."""
        with self._transaction():
            self._append({"kind": kind, **facts})

    def _read(self) -> list[Json]:
        previous = self._genesis
        entries: list[Json] = []
        for number, body, chain in self._db.execute("SELECT number, body, chain FROM entries ORDER BY number"):
            if number != len(entries) + 1 or chained(previous, body) != chain:
                raise ArtifactCorrupt(
                    f"{self.path}: the chain breaks at entry {len(entries) + 1}, so the ledger was changed or damaged "
                    "there. Restore it from a backup; without it nothing can be said of what is spent"
                )
            previous = chain
            entries.append(json.loads(body))
        return entries

    def _last(self) -> str:
        row = self._db.execute("SELECT chain FROM entries ORDER BY number DESC LIMIT 1").fetchone()
        return self._genesis if row is None else str(row[0])

    def _append(self, facts: Json) -> None:
        body = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}, allow_nan=False)
        self._db.execute("INSERT INTO entries (body, chain) VALUES (?, ?)", (body, chained(self._last(), body)))

    @contextmanager
    def _transaction(self) -> Iterator[list[Json]]:
        """The checked entries, and nobody else writes until the end. All or nothing."""
        with self._errors(), transaction(self._db):
            yield self._read()

    def _errors(self) -> AbstractContextManager[None]:
        return sqlite_errors(f"the ledger {self.path}")


def outcomes(entries: Sequence[Json]) -> list[Json]:
    """One row an admission: its facts, overlaid with what was really released where the run was settled."""
    settled = {entry["admission"]: entry for entry in entries if entry["kind"] == "released"}
    rows = []
    for entry in entries:
        if entry["kind"] == "admitted":
            done = settled.get(entry["id"])
            rows.append(entry | {"open": done is None} | ({**done, "time": entry["time"]} if done else {}))
    return rows


def spent(entries: Sequence[Json], source: str) -> Spent:
    """What the releases of one data set cost; see the module for the composition."""
    mine = [row for row in outcomes(entries) if row["source"] == source]
    drawn = [row for row in mine if row["records"] and row["part"] != LABELS]
    laws: dict[str, tuple[float, float]] = {}
    for row in drawn:
        epsilon, delta = laws.get(row["law"], (0.0, 0.0))
        laws[row["law"]] = (max(epsilon, row["epsilon"] or 0.0), max(delta, row["delta"]))
    bounded = all(row["epsilon"] is not None for row in drawn)
    return Spent(
        releases=sum(row["records"] for row in drawn),
        jobs=len({row["job"] for row in drawn}),
        nats=sum(epsilon for epsilon, _ in laws.values()) if bounded else None,
        delta=sum(delta for _, delta in laws.values()),
        label_nats=_label_nats(mine),
    )


def _label_nats(rows: Sequence[Json]) -> float | None:
    if any(row["part"] == "train" and row.get("label_epsilon") is None for row in rows):
        return None
    stores: dict[str, float] = {}
    for row in rows:
        if row["part"] == LABELS:
            if row["epsilon"] is None:
                return None
            stores[row["law"]] = max(stores.get(row["law"], 0.0), row["epsilon"])
    return sum(stores.values())


def refusal(now: Spent, after: Spent, budget: Budget) -> str | None:
    """Why going from `now` to `after` is over the budget; None if it is not. Public: the cloud is told."""
    if budget.releases is not None and after.releases > budget.releases:
        left = max(0, budget.releases - now.releases)
        return f"it may draw {after.releases - now.releases} new releases and {left} are left"
    if budget.jobs is not None and after.jobs > budget.jobs:
        return f"{budget.jobs} jobs may draw new releases, and it would be one more"
    if budget.nats_per_record is not None:
        if after.nats is None:
            return "the budget is in nats a record, and the noise of this job (or of an earlier one) has no such bound"
        if after.nats > budget.nats_per_record:
            return f"a record would lose up to {after.nats:.4g} nats of the {budget.nats_per_record:g} allowed"
    return None


def _unsettled(entries: Sequence[Json], facts: Json) -> list[Json]:
    """Admissions of killed runs of the same work: one process at a time works on a job's training."""
    if facts["part"] == "predict":
        return []
    same = ("job", "source", "part", "law")
    return [row for row in outcomes(entries) if row["open"] and all(row[name] == facts[name] for name in same)]
