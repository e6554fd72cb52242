"""What must hold of a disk on which power was lost, whatever it kept of that which was not flushed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privtune.device.account.ledger import spent
from privtune.device.account.run_account import source_of
from privtune.shared.manifest import MANIFEST
from privtune.shared.modeling.checkpoint import checkpoint_steps
from tests.support.losing_disk import Loss
from tests.torture.reading import Found, Reader, below, disks
from tests.torture.recorded import HELD_OUT, RECORDS, Recorded


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
    """Reads the disks of one recorded job."""

    def __init__(self, made: Recorded, scratch: Path) -> None:
        self._made = made
        self._read = {"device": Reader(scratch, made.key), "cloud": Reader(scratch)}

    def moments(self, side: str) -> Iterator[Moment]:
        """Every moment at which the disk of a side was another one, under each loss."""
        operations = self._made.operations[side]
        for count, loss, seed, found in disks(self._made.folder / side, operations):
            moment = Moment(side=side, count=count, loss=loss, seed=seed, time=operations[count - 1].time)
            self._look(moment, found)
            yield moment

    def _look(self, moment: Moment, found: Found) -> None:
        read, top = self._read[moment.side], "home/" if moment.side == "device" else "data/"
        moment.wrong += read.unreadable(found)
        checkpoints = f"{top}jobs/{self._made.job_id}/checkpoints/"
        parts = below(found, checkpoints)
        moment.steps = read.once("steps", parts, lambda folder: checkpoint_steps(folder / checkpoints))
        if moment.side == "device":
            self._look_at_device(moment, found)
        else:
            self._look_at_cloud(moment, found)

    def _look_at_device(self, moment: Moment, found: Found) -> None:
        read = self._read["device"]
        moment.wrong += read.not_sealed(found)
        held = dict(read.rows(found, "home/releases.sqlite", "SELECT record, data FROM releases"))
        due = {key: data for key, (data, at) in self._made.sent.items() if at < moment.count}
        lost = sum(held.get(key) != data for key, data in due.items())
        bodies = read.rows(found, "home/ledger.sqlite", "SELECT body FROM entries ORDER BY number")
        entries = [json.loads(body) for (body,) in bodies]
        charged = sum(spent(entries, source_of(str(path))).releases for path in (self._made.data, self._made.held_out))
        moment.wrong += [f"{lost} of {len(due)} releases that had left are not on the disk"] if lost else []
        if charged < len(due):
            moment.wrong.append(f"the ledger was charged for {charged} releases, {len(due)} had left")
        if charged > RECORDS + HELD_OUT:
            moment.wrong.append(f"the ledger was charged for {charged} releases")
        moment.facts = {"held": len(held), "done": f"home/jobs/{self._made.job_id}/report.json" in found}

    def _look_at_cloud(self, moment: Moment, found: Found) -> None:
        rows = self._read["cloud"].rows(found, "data/cloud.sqlite", "SELECT status, adapter_sha256 FROM jobs")
        moment.facts = {"status": rows[0][0] if rows else None, "adapter": rows[0][1] if rows else None}
        if moment.time > self._made.created and not rows:
            moment.wrong.append("the job is gone that the cloud had accepted")
        if moment.facts["status"] == "succeeded":
            adapter = f"data/jobs/{self._made.job_id}/adapter/{MANIFEST}"
            if moment.facts["adapter"] != self._made.adapter_sha256 and not self._made.spec.tail:
                moment.wrong.append("the job has succeeded with another adapter")
            if adapter not in found:
                moment.wrong.append("the job has succeeded without its adapter")
