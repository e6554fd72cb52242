"""Tensors in safetensors files, in a folder that may be encrypted (`privtune.shared.at_rest`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import torch as safetensors
from torch import Tensor

from privtune.shared.at_rest import open_file, read_bytes, size_of, vault_of, write_bytes


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file. Raises OSError, and what safetensors raises for a file that it can't read."""
    found: dict[str, Tensor]
    found = safetensors.load_file(path) if vault_of(path) is None else safetensors.load(read_bytes(path))
    return found


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file, in one go and not flushed; an encrypted one is made in memory. Raises as `load_tensors`."""
    if vault_of(path) is None:
        safetensors.save_file(dict(tensors), path, metadata=metadata)
    else:
        write_bytes(path, safetensors.save(dict(tensors), metadata=metadata))


def tensor_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The shape of each tensor and the metadata of a file, which is not read any further.

    The format: https://huggingface.co/docs/safetensors. Raises OSError, or ValueError for a file of another length.
    """
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size_of(path):
            raise ValueError("no safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
    about = header.pop("__metadata__", {})
    end = max((one["data_offsets"][1] for one in header.values()), default=0)
    if 8 + length + end != size_of(path):
        raise ValueError("cut off, or longer than it should be")
    return {name: list(one["shape"]) for name, one in header.items()}, about
