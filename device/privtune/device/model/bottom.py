"""The device's part of a job's model, from the owner's own copy or from the cloud's package, and records in its ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import privtune.split.v1.split_pb2 as pb
from privtune.device.data.encode import EncodedDataset, encode_causal_lm, encode_classification
from privtune.device.data.prompts import PromptForm
from privtune.device.data.records import Records
from privtune.device.link.download import fetch_folder, fetch_manifest
from privtune.device.link.rpc import Link
from privtune.device.model.pinned_bottom import hold_to_first
from privtune.device.runtime.memory import trim
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage, bottom_from_model, load_bottom_package


def load_bottom(
    link: Link,
    job_id: str,
    spec: JobSpec,
    *,
    home: Path,
    local_model: str | None,
    num_labels: int,
    say: Callable[[str], None],
) -> BottomPackage:
    """Bottom, head and tokenizer, and the tail's blocks where the job has a tail.

    The cloud's package is downloaded once and checked against its hashes. It comes from the adversary: prefer
    `local_model`, the owner's own copy, where there is one.

    Args:
        num_labels: classes of the job; what a language model has does not matter.
        say: gets a line per file that is downloaded.

    Raises JobConflict where the cloud's package is not what this device first got under the model's name.
    """
    num_labels, seed = max(num_labels, 2), spec.train.seed
    if local_model is not None:
        return bottom_from_model(local_model, spec.task, spec.cut, tail=spec.tail, num_labels=num_labels, seed=seed)
    manifest = fetch_manifest(link, pb.ARTIFACT_KIND_BOTTOM, job_id)
    folder = home / "bottoms" / hashlib.sha256(manifest).hexdigest()[:24]
    fetch_folder(link, pb.ARTIFACT_KIND_BOTTOM, job_id, folder, say)
    package = load_bottom_package(folder, num_labels=num_labels, seed=seed)
    hold_to_first(home, spec.model, package, folder)
    trim()
    return package


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
