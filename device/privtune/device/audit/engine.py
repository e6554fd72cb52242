"""One model, loaded once, under one mechanism after another: what to attack, and what training on releases reaches.

`privtune tune-noise` and the evaluations in research/ measure with it; each keeps its results in a `MeasurementFile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from privtune.device.audit.attacks.attack import Clean, Lab, Say, silent
from privtune.device.audit.case import Case, build_case, whole_model
from privtune.device.audit.metrics import mean_difference
from privtune.device.audit.sizes import Size
from privtune.device.audit.utility import DeviceAlone, Utility, UtilityTraining, measure_utility
from privtune.device.audit.victim import Victim
from privtune.device.data.encode import EncodedDataset
from privtune.device.release.noising import Noise, build_noise
from privtune.device.release.own_records import OwnRecords
from privtune.shared.job_spec import MechanismSpec, Skip, Task
from privtune.shared.modeling.bottom_package import BottomPackage, bottom_from_model
from privtune.shared.modeling.partition import Partition, Top


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Which blocks are on the device.

    cut: the first blocks.
    tail: the last blocks, which train there; with none the cloud trains the blocks above the cut.
    skip: how clean vectors reach the tail, as of a job.
    """

    cut: int
    tail: int = 0
    skip: Skip = "frozen"

    @property
    def alone(self) -> Depth:
        """What the same device trains without a cloud: its blocks, and always the last one (docs/cloud-gain.md)."""
        return Depth(cut=self.cut, tail=max(self.tail, 1), skip="tuned")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The records that utility is trained and scored on."""

    train: EncodedDataset
    held_out: EncodedDataset


class Engine:
    """A model and everything that does not depend on a mechanism.

    Attacks that are built on clean vectors are built once per cut and seed: keep the attacker's text the same for one
    engine and seed.

    Args:
        model: folder, hub id or GGUF.
        classes: labels of the task; at least two are assumed.
        home: folder of public texts and tables.
    """

    def __init__(self, model: str, task: Task, classes: int, home: Path) -> None:
        self._model, self._task, self._classes, self._home = model, task, classes, home
        self._bottoms: dict[int, BottomPackage] = {}
        self._cases: dict[tuple[int, int], tuple[Case, dict[str, int]]] = {}
        self._clean: dict[tuple[int, int], Clean] = {}

    @cached_property
    def whole(self) -> Partition:
        """The owner's own copy of the model."""
        return whole_model(self._model, self._task, self._classes)

    def bottom(self, cut: int) -> BottomPackage:
        """The blocks below the cut, with tokenizer and head."""
        if cut not in self._bottoms:
            self._bottoms[cut] = bottom_from_model(self._model, self._task, cut, num_labels=max(self._classes, 2))
        return self._bottoms[cut]

    def noise(self, spec: MechanismSpec, cut: int, records: EncodedDataset, folder: Path, say: Say = silent) -> Noise:
        """The mechanism at the cut. records: what it may learn from; folder: where that is kept."""
        own = OwnRecords(home=folder, fingerprint=records.fingerprint, job=folder / "job", data=records)
        return build_noise(self.bottom(cut), spec, cut, self._home, own, progress=say)

    def victim(self, noise: Noise, cut: int) -> Victim:
        """What the cloud sees of this mechanism."""
        return Victim(self.bottom(cut).bottom, noise.mechanism, noise.mechanism.context.special_ids, noise.importance)

    def case(
        self,
        noise: Noise,
        cut: int,
        data: EncodedDataset,
        attacked: NDArray[np.int64],
        *,
        size: Size,
        seed: int,
        public: Sequence[str],
        max_length: int,
    ) -> tuple[Case, dict[str, int]]:
        """As `build_case`; everything but the mechanism is that of the first call with this cut and seed."""
        if (cut, seed) in self._cases:
            case, records = self._cases[cut, seed]
            first = case.victim
            victim = Victim(first.bottom, noise.mechanism, first.special_ids, noise.importance, first.states)
            return replace(case, victim=victim), records
        found = build_case(
            self.bottom(cut),
            noise,
            data,
            attacked,
            size=size,
            seed=seed,
            public=public,
            max_length=max_length,
            whole=self.whole,
        )
        return self._cases.setdefault((cut, seed), found)

    def lab(self, case: Case, cut: int, seed: int) -> Lab:
        """What attacks on the case are built with."""
        clean = self._clean.setdefault((cut, seed), Clean())
        return Lab(case.public, case.victim, case.encoder, clean)

    def utility(
        self,
        victim: Victim,
        depth: Depth,
        data: Labelled,
        training: UtilityTraining,
        *,
        seed: int,
        say: Say = silent,
    ) -> Utility:
        """What training on the victim's releases reaches on held-out ones."""
        whole, count = self.whole, depth.tail
        return measure_utility(
            victim,
            whole.top(depth.cut, count),
            whole.head(),
            data.train,
            data.held_out,
            readout=whole.readout,
            training=training,
            tail=whole.tail(count) if count else None,
            below=self._below(depth) if count else None,
            skip=depth.skip != "none",
            seed=seed,
            say=say,
        )

    def utility_alone(
        self,
        victim: Victim,
        depth: Depth,
        data: Labelled,
        training: UtilityTraining,
        *,
        seed: int,
        say: Say = silent,
    ) -> Utility:
        """What the blocks that a device with this tail trains reach on clean vectors without any cloud."""
        below, tail = self._below(depth), self.whole.tail(depth.tail)
        top: nn.Module = tail if below is None else DeviceAlone(below, tail)
        # Trainable blocks below the cut read the embedding stage.
        bottom = self.bottom(depth.cut if below is None else 0).bottom
        return measure_utility(
            Victim(bottom, victim.mechanism, victim.special_ids, victim.importance),
            top,
            self.whole.head(),
            data.train,
            data.held_out,
            readout=self.whole.readout,
            training=training,
            seed=seed,
            clean=True,
            say=say,
        )

    def gain(
        self,
        victim: Victim,
        depth: Depth,
        own: Labelled,
        sent: Labelled,
        training: UtilityTraining,
        *,
        seeds: int,
        say: Say = silent,
    ) -> tuple[float, float, float]:
        """The cloud gain with its 95% interval: accuracy of the split minus that of the same device alone.

        own: the records as their owner has them, which the device alone trains on.
        sent: the same as the job would send them, in the same order.
        """
        split, alone = (
            np.mean([train(victim, where, data, training, seed=seed, say=say).right_B for seed in range(seeds)], axis=0)
            for train, where, data in ((self.utility, depth, sent), (self.utility_alone, depth.alone, own))
        )
        return mean_difference(split, alone)

    def _below(self, depth: Depth) -> Top | None:
        return self.whole.below(depth.cut) if depth.skip == "tuned" else None
