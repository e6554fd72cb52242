"""Frozen base models in memory, one per (model, task), shared by all of its jobs."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import torch

from privtune.cloud.catalog import Catalog
from privtune.shared.job_spec import JobSpec, Precision, Task
from privtune.shared.modeling.adapter_folder import base_sha256
from privtune.shared.modeling.bottom_package import write_bottom_package
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.partition import Head, Partition, Top

log = logging.getLogger(__name__)


class Host:
    """Loads each base once and builds tops that share its frozen weights. Tensors live on `device`."""

    def __init__(self, catalog: Catalog, packages: Path) -> None:
        self._catalog = catalog
        self._packages = packages
        self._partitions: dict[tuple[str, Task], Partition] = {}
        self._hashes: dict[tuple[str, Task], str] = {}
        self._lock = threading.Lock()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def partition(self, model: str, task: Task) -> Partition:
        """The partition of a model that this cloud offers, loaded on first use. Raises `ModelNotFound`."""
        with self._lock:
            key = (model, task)
            if key not in self._partitions:
                log.info("loading base model=%s task=%s", model, task)
                base = load_task_model(self._catalog.resolve(model), task)
                self._partitions[key] = Partition(base.to(self.device))
            return self._partitions[key]

    def base_sha256(self, spec: JobSpec) -> str:
        """Identifies the weights of a job's base, so that its adapter is never merged into others. Computed once."""
        key = (spec.model, spec.task)
        if key not in self._hashes:
            self._hashes[key] = base_sha256(self.partition(*key).model, spec.task)
        return self._hashes[key]

    def top(self, spec: JobSpec) -> Top:
        """A job's own top: new modules around the shared frozen weights. Raises `CutOutOfRange`."""
        return self.partition(spec.model, spec.task).top(spec.cut, spec.tail)

    def head(self, spec: JobSpec) -> Head:
        """A job's own head, for `labels: shared` only, with the initial weights that the device would draw."""
        model = load_task_model(
            self._catalog.resolve(spec.model), spec.task, num_labels=spec.num_labels or 2, seed=spec.train.seed
        )
        return Partition(model.to(self.device)).head()

    def bottom_package(self, spec: JobSpec) -> Path:
        """The bottom package for a job's model, task, cut and tail, written at the first request."""
        partition = self.partition(spec.model, spec.task)
        name = f"{partition.fingerprint()[:16]}-{spec.task}-cut{spec.cut}" + (f"-tail{spec.tail}" if spec.tail else "")
        folder = self._packages / name
        with self._lock:
            if not (folder / "manifest.json").exists():
                tokenizer = load_tokenizer(self._catalog.resolve(spec.model))
                write_bottom_package(
                    partition,
                    tokenizer,
                    cut=spec.cut,
                    tail=spec.tail,
                    task=spec.task,
                    name=spec.model,
                    folder=folder,
                )
        return folder

    def autocast_dtype(self, precision: Precision) -> torch.dtype | None:
        """The autocast type for a job, or None for float32 throughout."""
        if precision == "auto":
            return torch.bfloat16 if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else None
        return torch.bfloat16 if precision == "bf16" else None
