"""The arms of the comparison: what is done to the device's blocks before they see a private record.

untaught   nothing
labels     trained on the public labels of the public text, without a teacher
taught     taught by the whole model, which is first tuned on the same labels of a part of that text
shuffled   as taught, but each row's target is another row's
states     as taught, without any label

An arm with a cell of `research.frontier` after a plus, such as taught+codes-32-cut-2-tail-1-tuned, also sends what
that cell sends to the untaught cloud, and its skip begins with these blocks. Minus the arm without it: the cloud gain
on top.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privtune.cloud.compute.teaching.lesson import Lesson
from privtune.cloud.compute.teaching.pieces import Pieces
from privtune.cloud.compute.teaching.student import Distillation
from privtune.cloud.compute.teaching.teacher import Targets, Teacher, readout
from privtune.shared.modeling.partition import Partition
from privtune.shared.teaching_spec import TeachingSpec
from research.frontier.cells import FrontierCell, cells

TEACHER_SEED = 0  # one teacher for all seeds: its states of every piece are computed once


class SharedTeacher(Lesson):
    """A lesson whose teacher and targets are those of every other seed. shared: their folder."""

    def __init__(self, shared: Path, partition: Partition, pieces: Pieces, spec: TeachingSpec, folder: Path) -> None:
        super().__init__(
            partition,
            pieces,
            spec,
            folder,
            device=torch.device("cpu"),
            max_bytes=1 << 40,
            watch=_shown,
            stopped=lambda: False,
        )
        self._shared = shared

    def teacher(self) -> Teacher:
        """Tuned once."""
        return Lesson.teacher(self._first())

    def targets(self, teacher: Teacher) -> Targets:
        """Computed once."""
        return Lesson.targets(self._first(), teacher)

    def _first(self) -> SharedTeacher:
        self._shared.mkdir(parents=True, exist_ok=True)
        first = copy.copy(self)
        first.folder, first.spec = self._shared, self.spec.model_copy(update={"seed": TEACHER_SEED})
        return first


class Shuffled(SharedTeacher):
    """The same targets, but each row has that of another one."""

    def targets(self, teacher: Teacher) -> Targets:
        """The rows in a random order."""
        targets = super().targets(teacher)
        order = np.random.default_rng(self.spec.seed).permutation(int(targets.starts[-1]))
        return _Permuted(file=targets.file, starts=targets.starts, width=targets.width, order=order)


@dataclass(frozen=True, kw_only=True)
class _Permuted(Targets):
    order: npt.NDArray[np.int64]

    def rows(self, indices: npt.NDArray[np.int64], width: int) -> Tensor:
        kept = np.memmap(self.file, dtype=np.int16, mode="r", shape=(len(self.order), self.width))
        x_BTD = torch.zeros(len(indices), width, self.width, dtype=torch.bfloat16)
        for row, index in enumerate(indices):
            start, stop = int(self.starts[index]), int(self.starts[index + 1])
            x_BTD[row, : stop - start] = torch.from_numpy(kept[self.order[start:stop]]).view(torch.bfloat16)
        return x_BTD.float()


class PublicLabels(SharedTeacher):
    """No teacher: the device's blocks and a head train on the public labels, in the same steps."""

    def teacher(self) -> Teacher:
        """Not tuned: a head."""
        return Teacher(self.partition, self.spec, self.mixed, self.device)

    def targets(self, teacher: Teacher) -> Targets:
        """None."""
        return Targets(file=Path(), starts=np.zeros(1, dtype=np.int64), width=0)

    def held_out(self, distillation: Distillation, targets: Targets) -> dict[str, float]:
        """Nothing to be compared with."""
        return {}

    def loss(self, distillation: Distillation, targets: Targets, indices: npt.NDArray[np.int64]) -> Tensor:
        """Cross-entropy of the labels."""
        labels, student = self.pieces.labels, distillation.student
        if labels is None or student.head is None:
            raise ValueError("this arm needs public labels")
        ids_BT, mask_BT = self.pieces.padded(indices)
        with self.mixed():
            h0_BTD = distillation.embed(ids_BT, mask_BT)
            out_BD = student(h0_BTD, mask_BT, readout(self.partition, mask_BT))
        return nn.functional.cross_entropy(student.head(out_BD.float()), torch.from_numpy(labels[indices]))


ARMS: dict[str, type[SharedTeacher] | None] = {
    "untaught": None,
    "labels": PublicLabels,
    "taught": SharedTeacher,
    "shuffled": Shuffled,
    "states": SharedTeacher,
}


def _shown(stage: str, step: int, steps: int, loss: float) -> None:
    if step % 50 == 0 or step == steps:
        print(f"  {stage} {step}/{steps} {loss:.4f}", flush=True)


def parts(arm: str, cut: int) -> tuple[str, FrontierCell | None]:
    """What is done to the blocks, and what is sent on top. Exits with what there is for an unknown name."""
    base, plus, name = arm.partition("+")
    known = {name: cell for name, cell in cells().items() if (cell.cut, cell.tail, cell.tuned) == (cut, 1, True)}
    known = {name: cell for name, cell in known.items() if not cell.alone}
    if base not in ARMS or (plus and name not in known):
        sys.exit(f"no such arm: {arm}; there are: {', '.join(ARMS)}; at cut {cut} after a plus: {', '.join(known)}")
    return base, known[name] if plus else None
