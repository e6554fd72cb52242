"""The bottom package: the device's part of a model as a folder, without the blocks that run in the cloud.

    config.json  bottom.safetensors  tokenizer files...  manifest.json (written last)

The folder comes from the cloud, which is the adversary: file names, hashes, names and shapes of all tensors are
checked, and no code in it runs. Only a local copy of the model can show that the weights are the public ones.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from privtune.shared.errors import (
    ArtifactCorrupt,
    CutOutOfRange,
    ModelUnsupported,
    PrivTuneError,
    StorageFull,
    is_failure,
)
from privtune.shared.files import native_os_errors, replacing_folder
from privtune.shared.job_spec import Task
from privtune.shared.manifest import sha256_file, verify, write_manifest
from privtune.shared.modeling.fresh_weights import draw_fresh, fresh_by_design
from privtune.shared.modeling.hf_calls import SAFE, quiet
from privtune.shared.modeling.load import (
    build_task_model,
    check_buffers,
    check_config,
    check_folder,
    load_task_model,
    load_tokenizer,
    prepare_tokenizer,
)
from privtune.shared.modeling.package_config import package_config
from privtune.shared.modeling.partition import Bottom, Head, Partition, Top
from privtune.shared.modeling.positions import max_positions
from privtune.shared.modeling.weights_hash import weights_sha256

log = logging.getLogger(__name__)

FORMAT = 1
_WEIGHTS = "bottom.safetensors"


@dataclass(frozen=True, kw_only=True)
class TaughtBlocks:
    """A taught package in use.

    sha256: of its manifest, which has the hash of every file.
    card: what it says of itself; from the cloud, without control characters.
    """

    sha256: str
    card: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BottomPackage:
    """What a device runs.

    name: the model's public name.
    bottom: embedding stage and the blocks below the cut.
    head: pooler and classifier, or lm_head.
    tail: the last blocks, if the job trains them on the device.
    below: a copy of the bottom's blocks, for a tail with a tuned skip connection; None without a tail and at cut 0.
    n_layers, hidden_size: of the whole model.
    readout: the token that a classifier reads.
    fingerprint: `Partition.fingerprint` of the whole model.
    weights_sha256: identifies the weights of bottom, head and tail; see `bottom_sha256`.
    max_positions: longest text in tokens; None if the model sets no limit.
    end_ids: tokens that end a text, by the model's configuration and its tokenizer.
    taught: whose weights `below`, `tail` and head begin with; None for the model's own.
    """

    name: str
    bottom: Bottom
    head: Head
    tokenizer: Any
    task: Task
    cut: int
    tail: Top | None
    below: Top | None
    n_layers: int
    hidden_size: int
    readout: Literal["first", "last"]
    fingerprint: str
    weights_sha256: str
    max_positions: int | None
    end_ids: frozenset[int]
    taught: TaughtBlocks | None = None

    def check_ids(self, ids: Iterable[Sequence[int] | npt.NDArray[np.int32]]) -> None:
        """Check the token ids of texts before using them.

        Raises `ModelUnsupported` for an id outside the model's vocabulary: the tokenizer belongs to another model. A
        tokenizer that is larger than the model is not wrong by itself: Gemma's has tokens for images.
        """
        vocabulary = self.bottom.task.base_model.get_input_embeddings().num_embeddings
        if any(len(one) and int(np.max(one)) >= vocabulary for one in ids):
            raise ModelUnsupported(
                f"The tokenizer of '{self.name}' ({len(self.tokenizer):,} tokens) and its weights ({vocabulary:,}) do "
                "not belong together: these texts have tokens that the model does not know."
            )


def write_bottom_package(
    partition: Partition, tokenizer: Any, *, cut: int, task: Task, name: str, folder: Path, tail: int = 0
) -> dict[str, Any]:
    """Write the package of `partition` at `cut`, with the last `tail` blocks; returns its manifest.

    name: the model's public name.

    Weights that are drawn from a seed are left out: the device draws them for its own number of labels.
    Raises `CutOutOfRange`; `StorageFull` when the folder can't be written.
    """
    state = {key: value.cpu().contiguous() for key, value in _stored(partition, cut, tail, task).items()}
    try:
        with replacing_folder(folder) as scratch:
            save_file(state, scratch / _WEIGHTS, metadata={"format": "pt"})
            _save_texts(partition, tokenizer, scratch)
            return write_manifest(
                scratch,
                format=FORMAT,
                model=name,
                task=task,
                cut=cut,
                tail=tail,
                num_layers=partition.n_layers,
                fingerprint=partition.fingerprint(),
                end_ids=sorted(end_ids(partition.model)),
            )
    except OSError as error:
        raise StorageFull(f"The bottom package of {name} can't be written: {error.strerror or error}") from error


def bottom_sha256(partition: Partition, *, cut: int, task: Task, tail: int = 0) -> str:
    """SHA-256 of the weights that a package of `partition` holds, the same in the cloud and on the device.

    What is drawn from a seed is left out. Raises `CutOutOfRange`.
    """
    return weights_sha256(_stored(partition, cut, tail, task))


def texts_sha256(partition: Partition, tokenizer: Any) -> str:
    """SHA-256 of a package's configuration and tokenizer, as they are written. Raises `StorageFull`."""
    digest = hashlib.sha256(json.dumps(sorted(end_ids(partition.model))).encode())
    try:
        with tempfile.TemporaryDirectory() as scratch, native_os_errors():
            _save_texts(partition, tokenizer, Path(scratch))
            for path in sorted(Path(scratch).iterdir()):
                digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    except OSError as error:
        raise StorageFull(f"A tokenizer can't be written to {tempfile.gettempdir()}: {error.strerror}") from error
    return digest.hexdigest()


def load_bottom_package(folder: Path, *, num_labels: int = 2, seed: int = 0) -> BottomPackage:
    """Check every hash, then build the device's parts; blocks of the cloud take no memory.

    Weights that the package lacks by design are drawn from `seed` exactly as `load_task_model` draws them.
    Raises `ArtifactCorrupt` when anything does not match, `ModelUnsupported` for another format or model type.
    """
    manifest = verify(folder)
    if manifest.get("format") != FORMAT:
        raise ModelUnsupported(
            f"{folder.name} has package format {manifest.get('format')}; this version reads {FORMAT}."
        )
    task: Task = "causal-lm" if manifest.get("task") == "causal-lm" else "classification"
    name = str(manifest.get("model", folder.name))
    check_folder(folder)
    try:
        with quiet():
            config = package_config(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, **SAFE)
        check_buffers(config, task, name)
        shell = build_task_model(check_config(config, task, num_labels, name), task)
        state = load_file(folder / _WEIGHTS)
    except PrivTuneError:
        raise
    except BaseException as error:  # whatever nonsense makes transformers raise, or tokenizers panic
        if not is_failure(error):
            raise
        raise ArtifactCorrupt(f"{folder.name} is not a usable bottom package; fetch it again") from error
    partition = Partition(shell)
    if partition.fingerprint() != manifest.get("fingerprint"):
        raise ArtifactCorrupt(f"{folder.name}: the configuration is not that of the model in the manifest")
    cut, tail = _cuts_of(manifest, partition)
    found = weights_sha256(state)
    _fill(partition, state, cut, tail, task, seed)
    tokenizer, end_ids = prepare_tokenizer(tokenizer, name), manifest.get("end_ids")
    if not isinstance(end_ids, list) or not all(isinstance(token, int) for token in end_ids):
        raise ArtifactCorrupt("The manifest of the bottom package names no usable end tokens; fetch it again.")
    return _package(
        partition, tokenizer, task=task, cut=cut, tail=tail, name=name, end_ids=frozenset(end_ids), found=found
    )


def bottom_from_model(
    ref: str, task: Task, cut: int, *, tail: int = 0, num_labels: int = 2, seed: int = 0
) -> BottomPackage:
    """The device's parts from a full copy of the model that the owner trusts; the cloud's blocks are freed."""
    partition = Partition(load_task_model(ref, task, num_labels=num_labels, seed=seed))
    return _package(
        partition,
        load_tokenizer(ref),
        task=task,
        cut=cut,
        tail=tail,
        name=ref,
        end_ids=end_ids(partition.model),
        found=bottom_sha256(partition, cut=cut, task=task, tail=tail),
    )


def _package(
    partition: Partition,
    tokenizer: Any,
    *,
    task: Task,
    cut: int,
    tail: int,
    name: str,
    end_ids: frozenset[int],
    found: str,
) -> BottomPackage:
    partition.check_tail(cut, tail)
    return BottomPackage(
        name=name,
        bottom=partition.bottom(cut),
        head=partition.head(),
        tokenizer=tokenizer,
        task=task,
        cut=cut,
        tail=partition.tail(tail) if tail else None,
        below=partition.below(cut) if tail and cut else None,
        n_layers=partition.n_layers,
        hidden_size=partition.hidden_size,
        readout=partition.readout,
        fingerprint=partition.fingerprint(),
        weights_sha256=found,
        max_positions=max_positions(partition.model.config),
        end_ids=(end_ids | {tokenizer.eos_token_id}) - {None},
    )


def end_ids(model: Any) -> frozenset[int]:
    """The tokens at which `model.generate` stops."""
    settings = getattr(model, "generation_config", None) or model.config
    found = getattr(settings, "eos_token_id", None)
    return frozenset(found if isinstance(found, list) else [found]) - {None}


def _cuts_of(manifest: dict[str, Any], partition: Partition) -> tuple[int, int]:
    """(cut, tail). Raises `ArtifactCorrupt`."""
    try:
        cut, tail = partition.check_cut(int(manifest["cut"])), int(manifest["tail"])
        return cut, partition.check_tail(cut, tail)
    except (KeyError, TypeError, ValueError, CutOutOfRange) as error:
        raise ArtifactCorrupt("The manifest of the bottom package names no usable cut; fetch it again.") from error


def _stored(partition: Partition, cut: int, tail: int, task: Task) -> dict[str, torch.Tensor]:
    """The tensors of a package, as they are in memory: those of the device's parts but for what a seed draws."""
    partition.check_tail(cut, tail)
    model = partition.model
    wanted = _names(partition, cut, tail) - getattr(model, "fresh_parameters", frozenset())
    wanted -= fresh_by_design(model, task)
    stored = dict(model.named_parameters()) | dict(model.named_buffers())  # a tied lm_head appears once
    return {name: value.detach() for name, value in stored.items() if name in wanted}


def _save_texts(partition: Partition, tokenizer: Any, folder: Path) -> None:
    """Write a package's configuration, without what differs between jobs, and its tokenizer."""
    config = copy.deepcopy(partition.model.config)
    config.num_labels = 2
    config._name_or_path = ""
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _names(partition: Partition, cut: int, tail: int) -> set[str]:
    """Names of the tensors that a device with this cut and tail has."""
    parts = [partition.bottom(cut), partition.head(), *([partition.tail(tail)] if tail else [])]
    return {name for part in parts for name in part.state_dict()}


def _fill(partition: Partition, state: dict[str, torch.Tensor], cut: int, tail: int, task: Task, seed: int) -> None:
    """Load the package's tensors into the shell and draw what a classifier lacks. Raises `ArtifactCorrupt`."""
    shell = partition.model
    names = _names(partition, cut, tail)
    head = partition.head().state_dict().keys()
    single = dict(shell.named_parameters()) | dict(shell.named_buffers())  # without a tied lm_head
    known = dict(shell.named_parameters(remove_duplicate=False)) | single
    absent = names & single.keys() - state.keys()
    fresh = frozenset(absent & head) if task == "classification" else frozenset()
    wrong = sorted((absent - fresh) | (state.keys() - names))
    wrong += [name for name in state.keys() & known.keys() if state[name].shape != known[name].shape]
    if wrong:
        raise ArtifactCorrupt(f"{_WEIGHTS} does not hold the tensors of this model and cut ({', '.join(wrong[:3])})")
    blanks = {name: torch.zeros(known[name].shape) for name in fresh}
    shell.load_state_dict({**{k: v.float() for k, v in state.items()}, **blanks}, strict=False, assign=True)
    output = shell.get_output_embeddings()
    if output is not None and output.weight.is_meta:
        output.weight = shell.get_input_embeddings().weight
    draw_fresh(shell, fresh, seed)
    shell.requires_grad_(False)
