"""The folder of an adapter: its files, its base's identity, and the device's head joined to it, without peft.

The result loads in plain transformers + peft: `PeftModel.from_pretrained(base_model, folder)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from privtune.shared.at_rest import read_text
from privtune.shared.errors import ArtifactCorrupt, is_failure
from privtune.shared.files import replacing_file, write_json
from privtune.shared.job_spec import Task
from privtune.shared.modeling.partition import Head
from privtune.shared.modeling.tensor_files import load_tensors, save_tensors
from privtune.shared.modeling.weights_hash import weights_sha256

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
FULL_WEIGHTS = "tuned.safetensors"  # full tuning: the changed weights under the full model's names
FULL_FACTS = "tuning.json"
LABELS = "labels.json"
PEFT_PREFIX = "base_model.model."


def add_head_to_adapter(
    folder: Path, head: Head, *, task: Task, label_names: Sequence[str] = (), base_model: str | None = None
) -> None:
    """Add the head's weights to a folder that `save_adapter` wrote, replacing each file atomically.

    Classification: pooler and classifier become peft's `modules_to_save`, and labels.json names the classes (load the
    base with `num_labels=len(label_names)`). Causal LM: the head is the base's own; only the task type is set.

    base_model: replaces the name of the base, which may be a path in the cloud.

    Raises `ArtifactCorrupt` when the folder does not hold an adapter, OSError when it can't be written.
    """
    classification = task == "classification"
    state = {n: p.detach().cpu().contiguous() for n, p in head.named_parameters()} if classification else {}
    full = (folder / FULL_FACTS).exists()
    facts = folder / (FULL_FACTS if full else ADAPTER_CONFIG)
    config = read_config(facts)
    if base_model is not None:
        config["base_model_name_or_path"] = base_model
    if full:
        _rewrite(folder / FULL_WEIGHTS, state)
    else:
        _rewrite(folder / ADAPTER_WEIGHTS, {PEFT_PREFIX + name: value for name, value in state.items()})
        config["task_type"] = "SEQ_CLS" if classification else "CAUSAL_LM"
        config["inference_mode"] = True
        if classification:
            config["modules_to_save"] = _modules_to_save(head)
    write_json(facts, config)
    if classification and label_names:
        write_json(folder / LABELS, {"id2label": dict(enumerate(label_names)), "num_labels": len(label_names)})


def base_sha256(model: Any, task: Task) -> str:
    """SHA-256 of the weights that an adapter was trained on (names, shapes, fp32 values), the same on both sides.

    Excluded is what each job draws or trains itself: a classifier's own layers and the pooler.
    """
    inside = f"{model.base_model_prefix}."
    return weights_sha256(
        {
            name: value
            for name, value in model.named_parameters()
            if "pooler" not in name and (task != "classification" or name.startswith(inside))
        }
    )


def _modules_to_save(head: Head) -> list[str]:
    """The modules that hold the head's weights, by the last part of their name; BERT's pooler is in the base."""
    prefix = head.task.base_model_prefix
    names = [name.split(".") for name, _ in head.named_parameters()]
    return sorted({parts[1] if parts[0] == prefix else parts[0] for parts in names})


def _rewrite(path: Path, extra: Mapping[str, Tensor]) -> None:
    try:
        tensors = load_tensors(path)
    except BaseException as error:  # safetensors raises kinds of its own, not exported, and may panic
        if not is_failure(error):
            raise
        raise ArtifactCorrupt(f"{path.name} can't be read as safetensors; fetch the adapter again") from error
    with replacing_file(path) as scratch:
        save_tensors({**tensors, **extra}, scratch, metadata={"format": "pt"})


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file of an adapter. Raises `ArtifactCorrupt` when it can't be read."""
    try:
        config: dict[str, Any] = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ArtifactCorrupt(f"{path.name} can't be read; fetch the adapter again") from error
    return config
