"""Measures one arm: teach the device's blocks, train them on private records, and score them."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from privtune.cloud.compute.teaching.pieces import cut_into_pieces
from privtune.device.audit.engine import Depth, Engine, Labelled
from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.audit.utility import DeviceAlone, Utility, UtilityTraining, measure_utility
from privtune.device.data.encode import encode_classification
from privtune.shared.files import replacing_file
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.load import load_task_model
from privtune.shared.modeling.partition import Partition
from privtune.shared.teaching_spec import TeachingSpec
from research.frontier.cells import FrontierCell
from research.teach_down import arms
from research.teach_down.__main__ import model_folder
from research.teach_down.arms import ARMS, TEACHER_SEED
from research.teach_down.tasks import load_task

LENGTH = 64  # tokens of a private record


class Bench:
    """Model, private records and public pieces, loaded once."""

    def __init__(self, options: argparse.Namespace, command: Sequence[str]) -> None:
        self._options, self._command = options, shlex.join(command)
        self._ref, self._name = model_folder(options.model), Path(options.model).name
        self._task = load_task(options.task, options.data, options.split, options.private)
        names = self._task.names
        self._engine = Engine(self._ref, "classification", len(names), options.work / "home")
        package = self._engine.bottom(0)
        self._data = Labelled(
            train=encode_classification(self._task.private, package.tokenizer, LENGTH, label_names=names),
            held_out=encode_classification(self._task.scored, package.tokenizer, LENGTH, label_names=names),
        )
        texts, labels = zip(*self._task.public, strict=True)
        self._pieces = cut_into_pieces(
            package.tokenizer,
            texts,
            np.array(labels),
            max_length=options.length,
            most=options.pieces,
            seed=TEACHER_SEED,
        )
        self.kept = MeasurementFile(options.out / f"teach-down-{options.split}.cells.jsonl")

    def measure(self, arm: str, seed: int) -> None:
        """Measure and keep a cell, unless it is kept already."""
        (base, sends), options = arms.parts(arm, self._options.cut), self._options
        spec = self._spec(base, seed)
        setting = {"private": options.private, "epochs": options.epochs, "length": LENGTH}
        taught = None if ARMS[base] is None else spec.model_dump(exclude={"model", "seed", "checkpoint_every"})
        about = {"model": self._name, "task": options.task, "cut": options.cut, "arm": arm, "seed": seed}
        digest = hashlib.sha256(repr((setting, taught)).encode()).hexdigest()[:8]
        key = "-".join([*map(str, about.values()), digest])
        if self.kept.find(key) is not None:
            return
        began = time.monotonic()
        state, figures = self._taught(base, seed, spec)
        seconds = time.monotonic() - began
        found = self._private(state, seed, sends)
        facts = {
            **about,
            "split": options.split,
            **setting,
            "spec": taught,
            "figures": figures,
            "seconds": {"taught": round(seconds), "private": round(time.monotonic() - began - seconds)},
            "command": self._command,
            "accuracy": float(found.right_B.mean()),
            "by_epoch": found.by_epoch,
            "right": "".join("01"[int(right)] for right in found.right_B),
        }
        self.kept.keep(key, facts)
        print(f"{key}: {found.by_epoch} {facts['seconds']} {figures}", flush=True)

    def _spec(self, arm: str, seed: int) -> TeachingSpec:
        options = self._options
        return TeachingSpec(
            model=self._name,
            corpus=options.task,
            cut=options.cut,
            label_column=None if arm == "states" else "label",
            max_pieces=options.pieces,
            max_length=options.length,
            epochs=options.passes,
            learning_rate=options.rate,
            relations=options.relations,
            soft_labels=options.soft_labels,
            hard_labels=options.hard_labels,
            tuned_pieces=options.tuned_pieces,
            tuned_blocks=options.tuned_blocks,
            tuning_rate=options.tuning_rate,
            seed=seed,
            precision="bf16",
        )

    def _taught(self, arm: str, seed: int, spec: TeachingSpec) -> tuple[dict[str, Tensor], dict[str, Any]]:
        kind = ARMS[arm]
        if kind is None:
            return {}, {}
        partition = Partition(load_task_model(self._ref, "classification", num_labels=len(self._task.names), seed=seed))
        work = self._options.work / f"{self._name}-{self._options.task}"
        folder = work / f"{arm}-{seed}-{_digest(spec)}"
        teacher = ("label_column", "max_pieces", "max_length", "tuned_pieces", "tuned_blocks", "tuning_rate")
        shared = work / f"teacher-{_digest([getattr(spec, name) for name in teacher])}"
        kept = folder.with_suffix(".safetensors")  # for the arms that send something on top
        if not kept.exists():
            taught = kind(shared, partition, self._pieces, spec, folder).teach()
            with replacing_file(kept) as part:
                save_file(
                    {name: value.contiguous() for name, value in taught.state.items()},
                    part,
                    {"figures": json.dumps(taught.figures)},
                )
            shutil.rmtree(folder)
        with safe_open(kept, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["figures"])  # noqa: SIM118

    def _private(self, state: dict[str, Tensor], seed: int, sends: FrontierCell | None) -> Utility:
        """The device from its blocks as they were taught: alone, or with what it sends through the untaught bottom."""
        engine, depth = self._engine, Depth(cut=self._options.cut, tail=1, skip="tuned")
        model = load_task_model(self._ref, "classification", num_labels=len(self._task.names), seed=seed)
        model.load_state_dict(state, strict=False)
        whole = Partition(model)
        training = UtilityTraining(epochs=self._options.epochs, precision="bfloat16")
        told: dict[str, Any] = {"readout": whole.readout, "training": training, "seed": seed}
        records = self._data.train, self._data.held_out
        cut, folder = (0 if sends is None else depth.cut), self._options.work / "home"
        noise = engine.noise(MechanismSpec() if sends is None else sends.spec, cut, self._data.train, folder)
        victim, below, tail = engine.victim(noise, cut), whole.below(depth.cut), whole.tail(depth.tail)
        if sends is None:
            return measure_utility(victim, DeviceAlone(below, tail), whole.head(), *records, **told, clean=True)
        top = engine.whole.top(depth.cut, depth.tail)  # the cloud's, which nobody taught
        return measure_utility(victim, top, whole.head(), *records, **told, tail=tail, below=below)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]
