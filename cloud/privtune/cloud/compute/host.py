"""Frozen base models in memory, one per (model, task), shared by all of its jobs."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from pathlib import Path
from typing import Any, Literal

import torch

from privtune.cloud.catalog import Catalog
from privtune.shared.errors import VersionMismatch
from privtune.shared.files import finish_removals, remove_folder
from privtune.shared.job_spec import JobSpec, Precision, Task
from privtune.shared.manifest import MANIFEST
from privtune.shared.modeling.adapter_folder import base_sha256
from privtune.shared.modeling.bottom_package import bottom_sha256, texts_sha256, write_bottom_package
from privtune.shared.modeling.joint_top import JointTop
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.partition import Head, Partition, Top
from privtune.shared.modeling.stored_weights import Stored, check_stored

log = logging.getLogger(__name__)
# A CPU's arithmetic is in full use from a few hundred rows on, and larger products fall out of its caches.
_CPU_ROWS, _GPU_ROWS = 256, 8192  # of a pass of several jobs
_REPLACED = "the files of {!r} have changed since this cloud loaded them; ask the operator to restart it"


class Host:
    """Loads each base once and builds tops that share its frozen weights. Tensors live on `device`.

    base_weights: how blocks are kept; auto: bf16 where the GPU computes in it, else fp32. Raises `PackageMissing`.
    speeds: what steps on them take.
    """

    def __init__(self, catalog: Catalog, packages: Path, base_weights: Stored | Literal["auto"] = "auto") -> None:
        if base_weights != "auto":
            check_stored(base_weights)
        self._catalog, self.speeds, self._base_weights = catalog, catalog.speeds, base_weights
        self._packages = packages
        self._partitions: dict[tuple[str, Task, Stored], Partition] = {}
        self._joint: dict[tuple[str, Task, Stored, int, int], JointTop] = {}
        self._tokenizers: dict[str, Any] = {}
        self._hashes: dict[tuple[str, Task], str] = {}
        self._bottoms: dict[tuple[str, Task, int, int], str] = {}
        self._lock = threading.RLock()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def partition(self, model: str, task: Task, stored: Stored | None = None) -> Partition:
        """The partition of a model that this cloud offers, loaded on first use and kept until the process ends.

        stored: how its blocks are kept; None: any, for what does not depend on it.
        Raises `ModelNotFound`, `PackageMissing`.
        """
        with self._lock:
            if stored is None:
                loaded = [one for one in self._partitions if one[:2] == (model, task)]
                stored = loaded[0][2] if loaded else self._default
            key = (model, task, stored)
            if key not in self._partitions:
                log.info("loading a model", extra={"model": model, "task": task, "weights": stored})
                base = self._whole(model, task)
                # With the weights: the operator may replace the files under a name while this process serves.
                if model not in self._tokenizers:
                    self._tokenizers[model] = load_tokenizer(self._catalog.resolve(model))
                if stored == "fp32":
                    base.model.to(self.device)
                else:
                    base.store_blocks(stored, self.device)
                self._partitions[key] = base
            return self._partitions[key]

    def stored(self, spec: JobSpec) -> Stored:
        """How the blocks that a job runs on are kept: as they are where it trains them or computes in float32."""
        exact = self.autocast_dtype(spec.train.precision) is None and self._default == "bf16"
        return "fp32" if exact or spec.tuning.method == "full" else self._default

    @property
    def _default(self) -> Stored:
        if self._base_weights == "auto":
            return "bf16" if self._bf16 else "fp32"
        return self._base_weights

    @property
    def _bf16(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    def _whole(self, model: str, task: Task) -> Partition:
        """The float32 weights of a model's files, on the CPU unless they are in use on the GPU.

        Raises `VersionMismatch` when the operator has replaced the files since this process loaded them.
        """
        if (model, task, "fp32") in self._partitions:
            return self._partitions[model, task, "fp32"]
        loaded = load_task_model(self._catalog.resolve(model), task)
        found = base_sha256(loaded, task)
        if self._hashes.setdefault((model, task), found) != found:
            raise VersionMismatch(_REPLACED.format(model))
        return Partition(loaded)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are in memory."""
        return tuple(sorted({model for model, _, _ in self._partitions.copy()}))

    @property
    def device_name(self) -> str:
        """What computes: `cpu`, or the GPU's name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def device_memory(self) -> tuple[int | None, int | None]:
        """Bytes in use on the GPU, also by others, and all that it has; None without one."""
        if self.device.type != "cuda":
            return None, None
        free, every = torch.cuda.mem_get_info(self.device)
        return every - free, every

    def hub_id(self, model: str) -> str | None:
        """Where others get a model: its hub id, or GGUF file of one; None for a file or folder of the operator."""
        ref = self._catalog.resolve(model)
        return None if Path(ref).is_absolute() else ref

    def base_sha256(self, spec: JobSpec) -> str:
        """Identifies the weights of a job's base, so that its adapter is never merged into others. Computed once."""
        key = (spec.model, spec.task)
        if key not in self._hashes:
            self.partition(*key)
        return self._hashes[key]

    def bottom_sha256(self, spec: JobSpec) -> str:
        """Identifies the weights that a job's device must run. Computed once per model, task, cut and tail."""
        key = (spec.model, spec.task, spec.cut, spec.tail)
        if key not in self._bottoms:
            partition = self._whole(spec.model, spec.task)
            self._bottoms[key] = bottom_sha256(partition, cut=spec.cut, task=spec.task, tail=spec.tail)
        return self._bottoms[key]

    def top(self, spec: JobSpec) -> Top:
        """A job's own top: new modules around the shared frozen weights. Raises `CutOutOfRange`."""
        return self.partition(spec.model, spec.task, self.stored(spec)).top(spec.cut, spec.tail)

    def joint_top(self, spec: JobSpec) -> JointTop:
        """Runs passes of several jobs over the slice that this one uses. Made once per model, task, cut and tail."""
        key = (spec.model, spec.task, self.stored(spec), spec.cut, spec.tail)
        if key not in self._joint:
            on_cpu = self.device.type == "cpu"
            rows = _CPU_ROWS if on_cpu else _GPU_ROWS
            self._joint[key] = JointTop(self.top(spec), grouped=not on_cpu, most_rows=rows)
        return self._joint[key]

    def head(self, spec: JobSpec) -> Head:
        """A job's own head, for `labels: shared` only, with the initial weights that the device would draw.

        Raises `VersionMismatch` when the operator has replaced the model's files since this process loaded them.
        """
        model = load_task_model(
            self._catalog.resolve(spec.model), spec.task, num_labels=spec.num_labels or 2, seed=spec.train.seed
        )
        if base_sha256(model, spec.task) != self.base_sha256(spec):
            raise VersionMismatch(_REPLACED.format(spec.model))
        return Partition(model.to(self.device)).head()

    def bottom_package(self, spec: JobSpec) -> Path:
        """The bottom package for a job's model, task, cut and tail, written at the first request.

        Its folder is named by all that goes into it, so a package of other weights or another tokenizer is never used.
        """
        self.partition(spec.model, spec.task)
        with self._lock:
            partition, tokenizer = self._whole(spec.model, spec.task), self._tokenizers[spec.model]
            contents = (spec.model, spec.task, self.bottom_sha256(spec), texts_sha256(partition, tokenizer))
            name = hashlib.sha256("\0".join(contents).encode()).hexdigest()[:24]
            folder = self._packages / f"{name}-cut{spec.cut}-tail{spec.tail}"
            if (folder / MANIFEST).exists():
                os.utime(folder)  # its last use, for `drop_packages`
            else:
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

    def drop_packages(self, unused_since: float) -> int:
        """Delete bottom packages that were last asked for before this time (seconds since 1970); returns how many.

        A device that fetches one right now has asked for it.
        """
        with self._lock:
            finish_removals(self._packages)
            old = [one for one in self._packages.glob("[!.]*") if one.stat().st_mtime < unused_since]
            for folder in old:
                remove_folder(folder)
        return len(old)

    def autocast_dtype(self, precision: Precision) -> torch.dtype | None:
        """The autocast type for a job, or None for float32 throughout."""
        if precision == "auto":
            return torch.bfloat16 if self._bf16 or self._base_weights == "bf16" else None
        return torch.bfloat16 if precision == "bf16" else None
