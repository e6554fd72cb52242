"""One teaching from its corpus to its package, in a folder of its own; whatever interrupts it, it continues there.

tuning/  states.bf16  steps/  ->  package: taught.safetensors, card.json, manifest.json
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privtune.cloud.compute.teaching.pieces import Pieces
from privtune.cloud.compute.teaching.student import Distillation, PieceBatch, Student
from privtune.cloud.compute.teaching.teacher import Mixed, Targets, Teacher, readout, write_targets
from privtune.cloud.compute.teaching.training import Watch, train_resumably
from privtune.shared.files import make_folder, write_json
from privtune.shared.job_spec import Precision
from privtune.shared.modeling.partition import Partition
from privtune.shared.teaching_spec import TeachingSpec

_HELD_OUT = 0.02  # share of the pieces that nothing is taught on, for the card's figures
_MOST_HELD_OUT = 512
_SECONDS = "seconds.json"


@dataclass(frozen=True, kw_only=True)
class Taught:
    """What a lesson ends with.

    state: name in the full model -> weights of the taught blocks and, with public labels, the head.
    figures: losses and shares of right labels on held-out pieces, untaught and taught; seconds of each stage.
    """

    state: dict[str, Tensor]
    figures: dict[str, Any]


class Lesson:
    """Teaches one student. The partition is this lesson's own: tuning on labels changes its weights.

    folder: what an interrupted lesson continues from.
    max_bytes: of the teacher's states on disk.
    watch: told of every step. stopped: asked after every step.
    """

    def __init__(
        self,
        partition: Partition,
        pieces: Pieces,
        spec: TeachingSpec,
        folder: Path,
        *,
        device: torch.device,
        max_bytes: int,
        watch: Watch,
        stopped: Callable[[], bool],
    ) -> None:
        self.partition, self.pieces, self.spec, self.folder, self.device = partition, pieces, spec, folder, device
        self.watch, self.stopped, self._max_bytes = watch, stopped, max_bytes
        apart = min(_MOST_HELD_OUT, max(1, round(_HELD_OUT * len(pieces))))
        self._kept, self.shown = np.arange(apart), np.arange(apart, len(pieces))
        low = low_precision(spec.precision, device)
        self.mixed: Mixed = lambda: torch.autocast(device.type, torch.bfloat16) if low else contextlib.nullcontext()

    def teach(self) -> Taught:
        """The taught blocks. Raises JobPaused once stopped, NonFinite, StorageFull, CloudOutOfMemory."""
        make_folder(self.folder)
        with self._clocked("tuning"):
            teacher = self.teacher()
        with self._clocked("states"):
            targets = self.targets(teacher)
        student = Student(self.partition, self.spec)
        distillation = Distillation(teacher, student, self.spec, self.mixed)
        before = self.held_out(distillation, targets)
        with self._clocked("teaching"):
            self.learn(distillation, targets)
        return Taught(
            state={name: value.detach().float().cpu() for name, value in student.state().items()},
            figures={
                "pieces": len(self.pieces),
                "tokens": self.pieces.tokens,
                "untaught": before,
                "taught": self.held_out(distillation, targets),
                "seconds": {stage: round(spent, 1) for stage, spent in self._spent().items()},
            },
        )

    def teacher(self) -> Teacher:
        """The whole model, tuned on the labels where there are any."""
        teacher = Teacher(self.partition, self.spec, self.mixed, self.device)
        teacher.tune(self.pieces.pick(self.shown), self.folder / "tuning", self.watch, self.stopped)
        return teacher

    def targets(self, teacher: Teacher) -> Targets:
        """What the teacher makes of every piece."""
        return write_targets(
            teacher,
            self.pieces,
            self.folder,
            width=self.partition.hidden_size,
            max_bytes=self._max_bytes,
            watch=self.watch,
            stopped=self.stopped,
        )

    def learn(self, distillation: Distillation, targets: Targets) -> None:
        """Teach the student on all pieces but those held out."""
        spec, shown = self.spec, self.pieces.pick(self.shown)
        each = -(-len(shown) // spec.batch_size)
        epoch, batches = -1, list[npt.NDArray[np.int64]]()

        def loss(step: int) -> Tensor:
            nonlocal epoch, batches
            if step // each != epoch:
                epoch = step // each
                batches = shown.batches(spec.batch_size, spec.seed, 1 + epoch)
            return self.loss(distillation, targets, self.shown[batches[step % each]])

        train_resumably(
            "teaching",
            distillation.student.state(),
            loss,
            steps=spec.epochs * each,
            rate=spec.learning_rate,
            folder=self.folder / "steps",
            checkpoint_every=spec.checkpoint_every,
            watch=self.watch,
            stopped=self.stopped,
        )

    def loss(self, distillation: Distillation, targets: Targets, indices: npt.NDArray[np.int64]) -> Tensor:
        """What is minimised on a batch of pieces."""
        return distillation.loss(distillation.distance(self.batch(indices, targets)))

    @torch.no_grad()
    def held_out(self, distillation: Distillation, targets: Targets) -> dict[str, float]:
        """Losses on the held-out pieces, and the share whose label the student's head names."""
        found: dict[str, list[float]] = {}
        for indices in np.array_split(self._kept, -(-len(self._kept) // self.spec.batch_size)):
            for name, value in vars(distillation.distance(self.batch(indices, targets))).items():
                found.setdefault(name, []).append(float(value))
        return {name: round(float(np.mean(values)), 6) for name, values in found.items()}

    def batch(self, indices: npt.NDArray[np.int64], targets: Targets) -> PieceBatch:
        """These pieces with their targets."""
        ids_BT, mask_BT = self.pieces.padded(indices)
        x_BTD, mask_BT = targets.rows(indices, ids_BT.shape[1]), mask_BT.to(self.device)
        labels = self.pieces.labels
        return PieceBatch(
            ids_BT=ids_BT.to(self.device),
            mask_BT=mask_BT,
            x_BTD=x_BTD.to(self.device),
            readout_B=readout(self.partition, mask_BT),
            labels_B=None if labels is None else torch.from_numpy(labels[indices]).to(self.device),
        )

    @contextlib.contextmanager
    def _clocked(self, stage: str) -> Iterator[None]:
        """Add the time spent in here to the stage's, also that of attempts which were stopped."""
        began, spent = time.monotonic(), self._spent()
        try:
            yield
        finally:
            write_json(self.folder / _SECONDS, spent | {stage: spent.get(stage, 0.0) + time.monotonic() - began})

    def _spent(self) -> dict[str, float]:
        file = self.folder / _SECONDS
        found: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        return found


def low_precision(precision: Precision, device: torch.device) -> bool:
    """Whether forward passes run in bfloat16: by default where the processor has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
