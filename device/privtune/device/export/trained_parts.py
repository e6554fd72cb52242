"""What an export is made of: the model's parts on this device, with the weights that the job trained in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privtune.device.export.gguf_file import check_gguf
from privtune.device.home.job_folder import JobFolder, JobState
from privtune.device.link.rpc import Link
from privtune.device.model.bottom import load_bottom
from privtune.device.model.head import HeadTrainer
from privtune.device.model.tail import Tail
from privtune.shared.errors import StorageFull, VersionMismatch
from privtune.shared.files import native_os_errors
from privtune.shared.modeling.adapter_folder import base_sha256
from privtune.shared.modeling.bottom_package import end_ids
from privtune.shared.modeling.gguf_source import gguf_file
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.partition import Head, Partition, Top
from privtune.shared.modeling.positions import max_positions
from privtune.shared.modeling.tensor_files import load_tensors

HEAD_WEIGHTS = "head.safetensors"  # in the cloud's adapter folder, for a job with shared labels


@dataclass(frozen=True, kw_only=True)
class TrainedParts:
    """The parts of a model for one export.

    model: the whole base; None if only the adapter is exported.
    head: the head.
    tail: the blocks that were trained on this device; None if the cloud trained.
    tokenizer: the tokenizer.
    source: the GGUF file that the base came from, if any.
    max_positions: longest text in tokens; None if the model sets no limit.
    end_ids: the tokens at which the base stops writing.
    """

    model: Any | None
    head: Head
    tail: Top | None
    tokenizer: Any
    source: Path | None = None
    max_positions: int | None
    end_ids: frozenset[int]

    def load_trained(self, state: JobState, folder: JobFolder, adapter: Path) -> Path:
        """Load what was trained on this device into head and tail. Returns the folder of the trained blocks' weights.

        adapter: the cloud's folder, which is also the result unless a tail was trained.

        Raises StorageFull.
        """
        step = state.final_step or 0
        if self.tail is not None:
            tail = Tail(self.tail, state.spec)
            HeadTrainer(self.head, state.spec.optim, seed=0, total_steps=1, tail=tail).load(folder.checkpoints, step)
            return _saved(tail, folder.path / "tail")
        if state.spec.labels == "shared":
            self.head.load_state_dict(load_tensors(adapter / HEAD_WEIGHTS))
        elif state.spec.task == "classification":
            HeadTrainer(self.head, state.spec.optim, seed=0, total_steps=1).load(folder.checkpoints, step)
        return adapter


def device_parts(link: Link, job_id: str, state: JobState, home: Path, local_model: str | None) -> TrainedParts:
    """The parts for an adapter, which needs no base model."""
    parts = load_bottom(
        link,
        job_id,
        state.spec,
        home=home,
        local_model=local_model,
        label_names=state.label_names,
        say=lambda _: None,
        taught_sha256=state.taught_sha256,
    )
    return TrainedParts(
        model=None,
        head=parts.head,
        tail=parts.tail,
        tokenizer=parts.tokenizer,
        max_positions=parts.max_positions,
        end_ids=parts.end_ids,
    )


def whole_model(
    state: JobState, local_model: str, sha256: str | None, say: Callable[[str], None], *, gguf: bool
) -> TrainedParts:
    """The parts of the owner's copy of the base, which must be the base that the adapter was trained on.

    An adapter on other weights would give a model that loads without complaint and answers nonsense.

    Args:
        state: the job.
        local_model: folder, hub id or GGUF file.
        sha256: hash of the weights that the adapter was trained on; None if the cloud did not report it.
        say: called before slow work.
        gguf: the model will be written as GGUF.

    Raises:
        VersionMismatch: the copy is another base, or that can't be checked.
        ModelUnsupported: a GGUF file can't hold the model.
    """
    if sha256 is None:
        raise VersionMismatch(
            "The cloud did not say which weights the adapter was trained on, so it can't be merged "
            "safely. Export it with --format peft."
        )
    say(f"loading the base from {local_model}")
    labels = max(len(state.label_names), 2)
    model = load_task_model(local_model, state.spec.task, num_labels=labels, seed=state.spec.train.seed)
    if gguf:
        check_gguf(model.config)
    found = base_sha256(model, state.spec.task)
    if found != sha256:
        raise VersionMismatch(
            f"Your copy of the model is not the adapter's base: its weights have the hash {found[:16]}…, the cloud's "
            f"{state.spec.model!r} has {sha256[:16]}…. Name the right one with --local-model."
        )
    partition = Partition(model)
    return TrainedParts(
        model=model,
        head=partition.head(),
        tail=partition.tail(state.spec.tail) if state.spec.tail else None,
        tokenizer=load_tokenizer(local_model),
        source=gguf_file(local_model),
        max_positions=max_positions(model.config),
        end_ids=end_ids(model),
    )


def _saved(tail: Tail, target: Path) -> Path:
    """The folder `target` with the trained weights of the tail."""
    try:
        shutil.rmtree(target, ignore_errors=True)
        with native_os_errors():
            tail.save_adapter(target)
    except OSError as error:
        raise StorageFull(f"{target} can't be written: {error.strerror}; free room and export again") from error
    return target
