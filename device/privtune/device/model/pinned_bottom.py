"""Trust on first use: under one model name, the bottom that the cloud serves stays what this device first got.

A bottom that is changed a little is another noise distribution, under which every record would be drawn again; a cloud
that changes it for each job averages the noise away. Each tensor and setting is pinned for itself, so that jobs with
another cut or task are held to the same model.

home/models/HASH.json   a model's name, and the SHA-256 of each tensor of its bottom, each setting, and the tokenizer
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from privtune.shared.at_rest import read_text
from privtune.shared.errors import DataInvalid, JobConflict, StorageFull
from privtune.shared.files import make_folder, write_json
from privtune.shared.modeling.bottom_package import BottomPackage

TOKENIZER = "tokenizer.json"
# Settings that follow from a job or from a version of transformers, not from the model.
_OF_THE_JOB = {
    *("_name_or_path", "architectures", "dtype", "transformers_version"),
    *("id2label", "label2id", "num_labels", "problem_type", "pad_token_id", "use_cache"),
}


def hold_to_first(home: Path, model: str, package: BottomPackage, folder: Path) -> None:
    """Pin what is new of the package in `folder`, if all that is known of the model is unchanged.

    Raises:
        JobConflict: something has changed since this device first got it.
        DataInvalid: the file of pins is damaged.
        StorageFull: the file can't be written.
    """
    path = home / "models" / f"{hashlib.sha256(model.encode()).hexdigest()[:24]}.json"
    found = _parts(package, folder)
    try:
        known = json.loads(read_text(path))["parts"] if path.exists() else {}
        changed = sorted(name for name in found.keys() & known.keys() if found[name] != known[name])
        if not changed and not found.keys() <= known.keys():
            make_folder(path.parent, 0o700)
            write_json(path, {"model": model, "parts": known | found}, private=True)
    except OSError as error:
        raise StorageFull(f"{path} can't be written: {error.strerror}; free room and run again") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataInvalid(
            f"{path} is damaged; restore it from a backup, or delete it to trust the cloud anew"
        ) from error
    if changed:
        raise JobConflict(
            f"the cloud's bottom of {model} is not the one that this device first got ({changed[0]} differs), and your "
            "records would be released a second time, under noise that can be averaged. Ask the operator to restore "
            f"it, use your own copy (--local-model), or delete {path} if you know why it changed and accept that"
        )


def _parts(package: BottomPackage, folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of everything that decides the bottom's vectors."""
    model, file = package.bottom.task, folder / TOKENIZER
    tensors = {name: _tensor_bytes(tensor) for name, tensor in package.bottom.state_dict().items()}
    settings = {
        f"setting {name}": json.dumps(value, sort_keys=True, default=str).encode()
        for name, value in model.config.to_dict().items()
        if name not in _OF_THE_JOB
    }
    tokenizer = {TOKENIZER: file.read_bytes() if file.exists() else b""}
    return {name: hashlib.sha256(data).hexdigest() for name, data in (tensors | settings | tokenizer).items()}


def _tensor_bytes(tensor: torch.Tensor) -> bytes:
    header = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return header + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
