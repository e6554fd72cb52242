"""What must hold of a disk on which power was lost, whatever it kept of that which was not flushed."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import safe_open

from privtune.device.account.ledger import spent
from privtune.device.account.run_account import source_of
from privtune.shared.manifest import MANIFEST, verify
from privtune.shared.modeling.checkpoint import checkpoint_steps
from tests.support.losing_disk import Disk, Loss, write
from tests.torture.recorded import HELD_OUT, RECORDS, Recorded

Found = dict[str, bytes | None]
CHANCES = 2  # disks that chance makes of one moment


@dataclass(kw_only=True)
class Moment:
    """One disk as it may be after power was lost.

    count: operations of its side that had ended.
    steps: of its whole checkpoints.
    facts: what its databases say.
    """

    side: str
    count: int
    loss: Loss
    seed: int
    time: float
    steps: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.side} after operation {self.count}, {self.loss.name} {self.seed}"


class Survivors:
    """Reads disks of one recorded job; what was read of a file once is not read again."""

    def __init__(self, made: Recorded, scratch: Path) -> None:
        self._made, self._scratch, self._known = made, scratch, dict[Any, Any]()

    def moments(self, side: str) -> Iterator[Moment]:
        """Every moment at which the disk of a side was another one, under each loss."""
        disk, before = Disk(self._made.folder / side), dict[tuple[Loss, int], Found]()
        for count, operation in enumerate(self._made.operations[side], 1):
            disk.apply(operation)
            for loss in Loss:
                for seed in range(CHANCES if loss is Loss.SOME else 1):
                    found = disk.after(loss, random.Random(f"{count} {seed}"))
                    if found != before.get((loss, seed)) or operation.kind == "send":
                        before[loss, seed] = found
                        moment = Moment(side=side, count=count, loss=loss, seed=seed, time=operation.time)
                        self._look(moment, found)
                        yield moment

    def _look(self, moment: Moment, found: Found) -> None:
        moment.wrong += self._unreadable(found)
        top = "home/" if moment.side == "device" else "data/"
        checkpoints = f"{top}jobs/{self._made.job_id}/checkpoints/"
        moment.steps = self._once("steps", _below(found, checkpoints), checkpoint_steps)
        if moment.side == "device":
            self._look_at_device(moment, found)
        else:
            self._look_at_cloud(moment, found)

    def _look_at_device(self, moment: Moment, found: Found) -> None:
        held = dict(self._rows(found, "home/releases.sqlite", "SELECT record, data FROM releases"))
        due = {key: data for key, (data, at) in self._made.sent.items() if at < moment.count}
        lost = sum(held.get(key) != data for key, data in due.items())
        bodies = self._rows(found, "home/ledger.sqlite", "SELECT body FROM entries ORDER BY number")
        entries = [json.loads(body) for (body,) in bodies]
        charged = sum(spent(entries, source_of(str(path))).releases for path in (self._made.data, self._made.held_out))
        moment.wrong += [f"{lost} of {len(due)} releases that had left are not on the disk"] if lost else []
        if charged < len(due):
            moment.wrong.append(f"the ledger was charged for {charged} releases, {len(due)} had left")
        if charged > RECORDS + HELD_OUT:
            moment.wrong.append(f"the ledger was charged for {charged} releases")
        moment.facts = {"held": len(held), "done": f"home/jobs/{self._made.job_id}/report.json" in found}

    def _look_at_cloud(self, moment: Moment, found: Found) -> None:
        rows = self._rows(found, "data/cloud.sqlite", "SELECT status, adapter_sha256 FROM jobs")
        moment.facts = {"status": rows[0][0] if rows else None, "adapter": rows[0][1] if rows else None}
        if moment.time > self._made.created and not rows:
            moment.wrong.append("the job is gone that the cloud had accepted")
        if moment.facts["status"] == "succeeded":
            adapter = f"data/jobs/{self._made.job_id}/adapter/{MANIFEST}"
            if moment.facts["adapter"] != self._made.adapter_sha256 and not self._made.spec.tail:
                moment.wrong.append("the job has succeeded with another adapter")
            if adapter not in found:
                moment.wrong.append("the job has succeeded without its adapter")

    def _unreadable(self, found: Found) -> list[str]:
        """Files under their last names that no one can read, and folders that do not match their manifest."""
        wrong = []
        for name, data in found.items():
            path = PurePosixPath(name)
            if data is None or any(part.startswith(".") for part in path.parts):
                continue
            parts: Found = {path.name: data}
            if path.name == MANIFEST and "/checkpoints/" not in name:
                parts = _below(found, f"{path.parent}/")
            trouble = self._once("file", parts, lambda folder, of=path.name: _trouble(folder / of))
            wrong += [f"{name}: {trouble}"] if trouble else []
        return wrong

    def _rows(self, found: Found, name: str, query: str) -> list[tuple[Any, ...]]:
        """Rows of a database, after SQLite has recovered it; none where it or its table does not exist yet."""
        parts = {
            key.removeprefix(name): data for key, data in found.items() if key.startswith(name) and key[-4:] != "-shm"
        }
        return self._once(query, parts, lambda folder: _rows(folder, query)) if "" in parts else []

    def _once(self, what: str, parts: Found, read: Any) -> Any:
        key = what, tuple(sorted(parts.items()))
        if key not in self._known:
            folder = Path(tempfile.mkdtemp(dir=self._scratch)) / "found"
            write({name or "database": data for name, data in parts.items()} if "" in parts else parts, folder)
            for name in [name for name in parts if name.startswith("-")]:
                (folder / name).rename(folder / f"database{name}")
            self._known[key] = read(folder)
            shutil.rmtree(folder.parent)
        return self._known[key]


def _below(found: Found, prefix: str) -> Found:
    return {name.removeprefix(prefix): data for name, data in found.items() if name.startswith(prefix)}


def _rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "database")) as database:
        database.execute("PRAGMA synchronous=OFF")
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        try:
            return database.execute(query).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise


def _trouble(path: Path) -> str:
    """Why a file can't be read; empty if it can."""
    try:
        if path.name == MANIFEST and len(list(path.parent.iterdir())) > 1:
            verify(path.parent)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="numpy"):
                pass
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                list(stored.values())
        elif path.suffix in (".sha256", ".txt", ".keys", ".ready") and not path.stat().st_size:
            return "is empty"
    except Exception as error:  # whatever it is, the file is not whole
        return f"{type(error).__name__}: {error}"[:200]
    return ""
