"""The ledger: what every job released from this device, and its privacy cost. Append-only, chained, one per device.

A run has two entries per data set: `admitted`, written BEFORE anything may be drawn or sent, with the most that the run
can newly release, and `released`, with what it did release. A run that is killed has only the first and counts in full
until the job's next run finds in the store of releases what was drawn.

What is counted (`Spent`), for each data set:
* releases: records drawn. Sending a release again, to whatever cloud, sends the same bytes and costs nothing.
* jobs: those that drew at least one release.
* noises: the noise distributions (`law`) that it was drawn under, each of which is a further draw of the same texts.
  Of texts without a file (predictions, generations) the most that one text was drawn under.
* label nats: the largest epsilon of the randomised labels that jobs trained with, as one store chains them
  (`release.label_store`), added over stores and sets of label names. None once a job's gradients revealed labels, or
  texts, that were not randomised.
* slope nats: the largest epsilon of a zeroth-order job's slopes, added over the jobs, whose slopes are independent
  draws. It is a part of the nats per record, named because it holds where the releases have no bound.
* nats per record: the largest loss of a record under each noise distribution (`law`), ADDED over the distributions
  (sequential composition; the deltas add too). Under one distribution (mechanism, model, cut, codec, length limit,
  store) a record is drawn once, so later jobs add nothing for it. Undefined as soon as one job has no bound: then it
  is `None`, never a number.

Not covered: equal texts in one data set are separate records (k copies of a text reveal k times as much); an edited
text is a new record; gradients and labels that are not randomised are not releases; a copy of a file under another path
is another data set.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from privtune.device.account.conditions import unlike
from privtune.device.account.hash_chain import chained, genesis
from privtune.shared.errors import ArtifactCorrupt, PolicyRefused
from privtune.shared.sqlite import open_private, sqlite_errors
from privtune.shared.wording import counted

if TYPE_CHECKING:
    from privtune.device.home.policy import Budget

FILE = "ledger.sqlite"
LABELS = "labels"  # the `part` of entries about randomised labels
_ROUNDED = 1 + 1e-6  # an epsilon that is computed back from the noise
DELETED = "deleted"  # kind of a note: a job's files, and perhaps its releases, were deleted on this device
SLOPES = "slopes"  # of a zeroth-order job, which are no releases of the records' vectors
Json = dict[str, Any]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, body TEXT NOT NULL, chain TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (only INTEGER PRIMARY KEY CHECK (only = 0), id TEXT NOT NULL);
INSERT OR IGNORE INTO ledger VALUES (0, lower(hex(randomblob(16))));
CREATE TABLE IF NOT EXISTS home (
    only INTEGER PRIMARY KEY CHECK (only = 0), id TEXT NOT NULL, count INTEGER NOT NULL, moved TEXT NOT NULL);
INSERT OR IGNORE INTO home VALUES (0, lower(hex(randomblob(16))), 0, '');
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What the releases of one data set have cost so far.

    releases: records drawn.
    jobs: jobs that drew at least one.
    noises: noise distributions that jobs drew under.
    nats: worst-case loss of any record, in nats; None: no bound.
    delta: probability that the loss is larger.
    label_nats: worst-case loss of any label, in nats; None: no bound.
    slope_nats: what slopes add to the loss of any record, in nats; None: no bound.
    """

    releases: int = 0
    jobs: int = 0
    noises: int = 0
    nats: float | None = 0.0
    delta: float = 0.0
    label_nats: float | None = 0.0
    slope_nats: float | None = 0.0


class Ledger:
    """The device's ledger, `home/ledger.sqlite` (mode 0600, created if missing).

    Use as a context manager, or `close` it. Safe to use from several processes; an entry is on disk when its call
    returns.

    Raises, in every call:
        StorageFull: no room on the disk.
        JobConflict: another process keeps the file locked.
        ArtifactCorrupt: the file is damaged, or the chain is broken.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / FILE
        with self._errors():
            self._file = open_private(self.path, _SCHEMA)
        with self._using() as db:
            self._genesis = genesis("ledger", db.execute("SELECT id FROM ledger").fetchone()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def entries(self) -> list[Json]:
        """Every entry, oldest first. Checks the chain."""
        with self._using() as db:
            return self._read(db)

    @property
    def head(self) -> str:
        """The hash of the last entry: note it elsewhere to detect a ledger that was rewritten."""
        with self._using() as db:
            return self._last(db)

    def holds(self, head: str) -> bool:
        """Whether a hash that was noted belongs to this ledger."""
        with self._using() as db:
            row = db.execute("SELECT 1 FROM entries WHERE chain = ?", (head,)).fetchone()
            return row is not None or head == self._genesis

    def admit(self, facts: Json, budget: Budget) -> str:
        """Enter what a run may newly release of one data set. Returns the entry's id.

        An earlier run of the same job that was killed is settled first, by `records`: what is still missing now was
        not drawn by it.

        Args:
            facts: at least source, job, part, law, records (the most that are drawn now), epsilon (of the costliest
                record; None: no bound) and delta. noises: how many distributions the costliest text is then drawn
                under, where texts are told apart one by one; else it follows from the data set.
            budget: of the data set.

        Raises:
            PolicyRefused: the budget is too small; the refusal is entered.
        """
        with self._transaction() as (db, entries):
            for gone in _unsettled(entries, facts):
                drawn = max(0, gone["records"] - facts["records"])
                self._append(db, {"kind": "released", "admission": gone["id"], "records": drawn, "recovered": True})
            facts = {"kind": "admitted", "id": uuid.uuid4().hex, **facts}
            reason = refusal(self._read(db), facts, budget)
            if reason is None:
                self._append(db, facts)
                return str(facts["id"])
            self._append(db, facts | {"kind": "refused", "reason": reason})
        raise refused(reason)

    def settle(self, admission: str, facts: Json) -> None:
        """Enter what a run did release: at least records, and epsilon and delta of the costliest."""
        with self._transaction() as (db, _):
            self._append(db, {"kind": "released", "admission": admission, **facts})

    def note(self, kind: str, facts: Json) -> None:
        """Enter anything else that an owner should know."""
        with self._transaction() as (db, _):
            self._append(db, {"kind": kind, **facts})

    def _read(self, db: sqlite3.Connection) -> list[Json]:
        previous = self._genesis
        entries: list[Json] = []
        for number, body, chain in db.execute("SELECT number, body, chain FROM entries ORDER BY number"):
            if number != len(entries) + 1 or chained(previous, body) != chain:
                raise ArtifactCorrupt(
                    f"{self.path}: the chain breaks at entry {len(entries) + 1}: the ledger was changed or damaged "
                    "there. Restore it from a backup; without it, what has been spent is unknown"
                )
            previous = chain
            entries.append(json.loads(body))
        return entries

    def _last(self, db: sqlite3.Connection) -> str:
        row = db.execute("SELECT chain FROM entries ORDER BY number DESC LIMIT 1").fetchone()
        return self._genesis if row is None else str(row[0])

    def _append(self, db: sqlite3.Connection, facts: Json) -> None:
        body = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}, allow_nan=False)
        db.execute("INSERT INTO entries (body, chain) VALUES (?, ?)", (body, chained(self._last(db), body)))

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with self._errors(), self._file.using() as db:
            yield db

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Connection, list[Json]]]:
        """The connection and the checked entries; nobody else writes until the end. All or nothing."""
        with self._errors(), self._file.transaction() as db:
            yield db, self._read(db)

    def _errors(self) -> AbstractContextManager[None]:
        return sqlite_errors(f"the ledger {self.path}")


def outcomes(entries: Sequence[Json]) -> list[Json]:
    """One row per admission: its facts, replaced by those of its release where the run is settled.

    `open` says whether it is not settled yet.
    """
    settled = {entry["admission"]: entry for entry in entries if entry["kind"] == "released"}
    rows = []
    for entry in entries:
        if entry["kind"] == "admitted":
            done = settled.get(entry["id"])
            rows.append(entry | {"open": done is None} | ({**done, "time": entry["time"]} if done else {}))
    return rows


def drawings(entries: Sequence[Json], source: str | None = None) -> list[Json]:
    """The outcomes of admissions that drew records, of one data set or of all."""
    rows = [row for row in outcomes(entries) if row["records"] and row["part"] not in (LABELS, SLOPES)]
    return [row for row in rows if source in (None, row["source"])]


def spent(entries: Sequence[Json], source: str) -> Spent:
    """What the releases of one data set cost; the module's docstring says how costs compose."""
    mine = [row for row in outcomes(entries) if row["source"] == source]
    drawn = drawings(entries, source)
    released, delta = _added(drawn)
    slopes, slope_delta = _added([row for row in mine if row["part"] == SLOPES])
    return Spent(
        releases=sum(row["records"] for row in drawn),
        jobs=len({row["job"] for row in drawn}),
        noises=max((row["noises"] for row in drawn if "noises" in row), default=len({row["law"] for row in drawn})),
        nats=None if released is None or slopes is None else released + slopes,
        delta=delta + slope_delta,
        label_nats=_label_nats(mine),
        slope_nats=slopes,
    )


def _added(rows: Sequence[Json]) -> tuple[float | None, float]:
    """Epsilon and delta of these rows: the largest of each law, added; epsilon is None where one has no bound."""
    laws: dict[str, tuple[float, float]] = {}
    for row in rows:
        epsilon, delta = laws.get(row["law"], (0.0, 0.0))
        laws[row["law"]] = (max(epsilon, row["epsilon"] or 0.0), max(delta, row["delta"]))
    bounded = all(row["epsilon"] is not None for row in rows)
    return sum(epsilon for epsilon, _ in laws.values()) if bounded else None, sum(delta for _, delta in laws.values())


def _label_nats(rows: Sequence[Json]) -> float | None:
    sent = [row for row in rows if row["part"] == "train" and row.get("gradients") != "none leave"]
    if any(row.get("label_epsilon") is None for row in sent):
        return None
    stores: dict[str, float] = {}
    for row in rows:
        if row["part"] == LABELS:
            if row["epsilon"] is None:
                return None
            stores[row["law"]] = max(stores.get(row["law"], 0.0), row["epsilon"])
    slopes, _ = _added([row for row in rows if row["part"] == SLOPES])
    return None if slopes is None else sum(stores.values()) + slopes


def refused(reason: str) -> PolicyRefused:
    """The error of a job that the budget does not allow."""
    return PolicyRefused(
        f"The device's privacy budget for this data set does not allow the job: {reason}.", private=True
    )


def refusal(entries: Sequence[Json], facts: Json, budget: Budget) -> str | None:
    """Why an admission exceeds the budget; None if it does not."""
    if not facts["records"]:
        return None
    source = facts["source"]
    now, after = spent(entries, source), spent([*entries, facts], source)
    # A data set may keep to all the distributions that it was allowed before.
    noises = facts.get("noises", after.noises if after.noises > now.noises else 0)
    if budget.releases is not None and after.releases > budget.releases:
        left = max(0, budget.releases - now.releases)
        return f"it may draw {counted(after.releases - now.releases, 'new release')} ({left:,} left)"
    if budget.jobs is not None and after.jobs > budget.jobs:
        return f"the budget is {counted(budget.jobs, 'job')} with new releases, and it would be one more"
    if budget.noises is not None and noises > budget.noises:
        # Texts without a file may have been drawn as part of any data set.
        before = [row for row in drawings(entries, None if "noises" in facts else source) if row["law"] != facts["law"]]
        return (
            f"its texts would be drawn under another noise distribution{unlike(before, facts)}, and {budget.noises} "
            "may be used: keep to the settings and model of the earlier jobs, or allow it (--another-noise; where the "
            "device has a policy, its budget: noises)"
        )
    if budget.slope_nats is not None and facts["part"] == SLOPES:
        slopes = float("inf") if after.slope_nats is None else after.slope_nats
        if slopes > budget.slope_nats * _ROUNDED:
            return f"all slopes together would cost a record {slopes:.4g} nats of the {budget.slope_nats:g} allowed"
    if budget.nats_per_record is not None:
        if after.nats is None:
            return "the budget is in nats per record, and the noise of this job (or an earlier one) has no such bound"
        if after.nats > budget.nats_per_record:
            return f"a record would lose up to {after.nats:.4g} nats of the {budget.nats_per_record:g} allowed"
    return None


def _unsettled(entries: Sequence[Json], facts: Json) -> list[Json]:
    """Admissions of killed runs of the same work. Only one process at a time trains a job, so none is still running."""
    if facts["part"] == "predict":
        return []
    same = ("job", "source", "part", "law")
    return [row for row in outcomes(entries) if row["open"] and all(row[name] == facts[name] for name in same)]
