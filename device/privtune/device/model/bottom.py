"""The device's part of a job's model, from the owner's own copy or from the cloud's package, and records in its ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import privtune.split.v1.split_pb2 as pb
from privtune.device.data.encode import EncodedDataset, encode_causal_lm, encode_classification
from privtune.device.data.prompts import PromptForm
from privtune.device.data.records import Records
from privtune.device.link.download import artifact_of, fetch_folder, fetch_manifest
from privtune.device.link.rpc import Link
from privtune.device.model.pinned_bottom import hold_to_first
from privtune.device.runtime.memory import trim
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage, bottom_from_model, load_bottom_package
from privtune.shared.modeling.taught_package import with_taught_blocks


def load_bottom(
    link: Link,
    job_id: str,
    spec: JobSpec,
    *,
    home: Path,
    local_model: str | None,
    label_names: Sequence[str],
    say: Callable[[str], None],
    taught_sha256: str = "",
) -> BottomPackage:
    """Bottom, head and tokenizer, and the tail's blocks where the job has a tail, as they were taught if they were.

    The cloud's package is downloaded once and checked against its hashes. It comes from the adversary: prefer
    `local_model`, the owner's own copy, where there is one.

    Args:
        label_names: of the job's classes, in their order; none for a language model.
        say: gets a line per file that is downloaded.
        taught_sha256: of the taught package that the job began with: the device's copy is used, not the cloud's.

    Raises JobConflict where the cloud's package is not what this device first got under the model's name;
    ArtifactCorrupt, VersionMismatch for taught blocks that do not fit.
    """
    num_labels, seed = max(len(label_names), 2), spec.train.seed
    if local_model is not None:
        package = bottom_from_model(local_model, spec.task, spec.cut, tail=spec.tail, num_labels=num_labels, seed=seed)
    else:
        package = served_bottom(link, artifact_of(pb.ARTIFACT_KIND_BOTTOM, job_id), spec, home, num_labels, say)
    if spec.taught is not None:
        folder = taught_folder(home, taught_sha256)
        if not (taught_sha256 and folder.exists()):
            folder = _fetched(link, artifact_of(pb.ARTIFACT_KIND_TAUGHT, job_id), home / "taught", say)
        package = with_taught_blocks(package, folder, label_names)
    trim()
    return package


def served_bottom(
    link: Link, artifact: pb.FetchRequest, spec: JobSpec, home: Path, num_labels: int, say: Callable[[str], None]
) -> BottomPackage:
    """The cloud's package, as `load_bottom`. artifact: a job's, or `planned_bottom`."""
    folder = _fetched(link, artifact, home / "bottoms", say)
    package = load_bottom_package(folder, num_labels=num_labels, seed=spec.train.seed)
    hold_to_first(home, spec.model, package, folder)
    return package


def planned_bottom(spec: JobSpec) -> pb.FetchRequest:
    """The package of a job that does not exist yet."""
    return pb.FetchRequest(kind=pb.ARTIFACT_KIND_BOTTOM, model=spec.model, task=spec.task, cut=spec.cut, tail=spec.tail)


def _fetched(link: Link, artifact: pb.FetchRequest, home: Path, say: Callable[[str], None]) -> Path:
    """An artifact of the cloud in a folder that its manifest names, downloaded once."""
    folder = _named(home, hashlib.sha256(fetch_manifest(link, artifact)).hexdigest())
    return fetch_folder(link, artifact, folder, say)


def taught_folder(home: Path, sha256: str) -> Path:
    """Where the device keeps a taught package. sha256: of its manifest."""
    return _named(home / "taught", sha256)


def _named(home: Path, sha256: str) -> Path:
    return home / sha256[:24]


def encode_records(
    package: BottomPackage, records: Records, spec: JobSpec, label_names: tuple[str, ...], form: PromptForm | None
) -> EncodedDataset:
    """A job's records as token ids. form: how a language model's records are written.

    Raises DataInvalid, and ModelUnsupported when tokenizer and weights do not belong together.
    """
    limit = spec.train.longest(package.max_positions)
    if spec.task == "classification":
        data = encode_classification(records, package.tokenizer, limit, label_names)
    else:
        data = encode_causal_lm(records, package.tokenizer, limit, form)
    package.check_ids(data.ids)
    return data
