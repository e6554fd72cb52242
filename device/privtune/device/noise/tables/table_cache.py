"""Tables on disk: one safetensors file each, found by how it was made or by its hash, and checked on load.

A file's name says how the table was made (its recipe). Its metadata holds a SHA-256 over every tensor and fact, by
which a job on any device can name exactly this table (`table=HASH`). No pickle; nothing private goes in without noise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from privtune.device.noise.context import NoiseContext
from privtune.shared.at_rest import size_of
from privtune.shared.errors import ArtifactCorrupt, InvalidInput, StorageFull
from privtune.shared.files import make_folder, replacing_file
from privtune.shared.modeling.tensor_files import load_tensors, save_tensors, tensor_header

FORMAT = "privtune-table-1"
SUFFIX = ".safetensors"
_SHORTEST_PREFIX = 12


@dataclass(frozen=True, kw_only=True)
class StoredTable:
    """A table as it is kept.

    kind: which table it is, like "shift" or "clusters".
    tensors: by name.
    facts: what they were made from, JSON-ready.
    """

    kind: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def sha256(self) -> str:
        """Hash of kind, facts, and every tensor's name, shape, dtype and bytes; independent of the file."""
        digest = hashlib.sha256(json.dumps([self.kind, self.facts], sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            digest.update(f"\0{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check_fits(self, context: NoiseContext, injection: str) -> None:
        """Raise InvalidInput if it was made for another model, cut, vocabulary or injection point."""
        wanted = {**_belonging(context), "injection": injection}
        wrong = [name for name, value in wanted.items() if self.facts.get(name) != value]
        if wrong:
            raise InvalidInput(
                f"the {self.kind} table belongs to another {' and another '.join(wrong)}; build one for this model "
                "and cut (privtune tables build)",
                param="table",
            )


def _belonging(context: NoiseContext) -> dict[str, Any]:
    return {"weights": context.weights, "vocabulary": context.vocabulary, "cut": context.cut}


def table_for(
    context: NoiseContext, kind: str, injection: str, tensors: Mapping[str, Tensor], **facts: Any
) -> StoredTable:
    """A table that belongs to this model at this injection point. facts: how it was made, JSON-ready."""
    return StoredTable(kind=kind, tensors=dict(tensors), facts={**_belonging(context), "injection": injection, **facts})


def recipe(context: NoiseContext, kind: str, settings: Mapping[str, Any]) -> str:
    """Fingerprint of how a table is made: its inputs and settings. Equal recipes give equal tables."""
    facts = {"name": kind, "format": FORMAT, "identity": context.identity, **settings}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def cached(
    context: NoiseContext, kind: str, settings: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The table from the cache folder, or made now and kept there. settings: must include the injection.

    Raises ArtifactCorrupt if the file is damaged, StorageFull if it can't be written.
    """
    if context.cache is None:
        return dict(make())
    path = context.cache / f"{kind}-{recipe(context, kind, settings)[:24]}{SUFFIX}"
    if path.exists():
        return read_table(path).tensors
    rest = {key: value for key, value in settings.items() if key != "injection"}
    table = table_for(context, kind, str(settings["injection"]), make(), **rest)
    write_table(table, path)
    return table.tensors


def write_table(table: StoredTable, path: Path) -> str:
    """Write the file, completely or not at all; returns its hash. Raises StorageFull."""
    sha256 = table.sha256()
    about = {"format": FORMAT, "kind": table.kind, "facts": json.dumps(table.facts, sort_keys=True), "sha256": sha256}
    try:
        make_folder(path.parent)
        with replacing_file(path) as scratch:
            save_tensors({name: tensor.contiguous() for name, tensor in table.tensors.items()}, scratch, metadata=about)
    except (OSError, SafetensorError) as error:
        raise StorageFull(f"the table {path.name} can't be written; free room or choose another folder") from error
    return sha256


def read_header(path: Path) -> dict[str, Any]:
    """Kind, facts, hash, shapes and size of a table file. The tensors are not read, so the hash is not verified."""
    try:
        shapes, about = tensor_header(path)
        if about["format"] != FORMAT:
            raise ArtifactCorrupt(f"{path.name} is not a table in the format {FORMAT}")
        return {
            "kind": about["kind"],
            "sha256": about["sha256"],
            "facts": json.loads(about["facts"]),
            "shapes": shapes,
            "bytes": size_of(path),
        }
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactCorrupt(f"the table {path.name} is damaged or no table; delete it and make it again") from error


def read_table(path: Path) -> StoredTable:
    """Read a table and verify its hash. Raises ArtifactCorrupt."""
    header = read_header(path)
    try:
        table = StoredTable(kind=header["kind"], tensors=load_tensors(path), facts=header["facts"])
    except (SafetensorError, OSError) as error:
        raise ArtifactCorrupt(f"the table {path.name} is damaged; delete it and make it again") from error
    if table.sha256() != header["sha256"]:
        raise ArtifactCorrupt(f"the table {path.name} does not match its hash; delete it and make it again")
    return table


def find_table(context: NoiseContext, kind: str, injection: str, sha256: str) -> StoredTable:
    """The table in the cache folder whose hash starts with `sha256` (12 digits or more, with or without "sha256:").

    Raises InvalidInput if there is none or it does not fit this model, ArtifactCorrupt if it is damaged.
    """
    sha256 = sha256.removeprefix("sha256:")
    if len(sha256) < _SHORTEST_PREFIX:
        raise InvalidInput(f"table needs at least {_SHORTEST_PREFIX} digits of the table's hash", param="table")
    folder = context.cache
    for path in sorted(folder.glob(f"*{SUFFIX}")) if folder is not None else ():
        header = read_header(path)
        if header["kind"] == kind and header["sha256"].startswith(sha256):
            table = read_table(path)
            table.check_fits(context, injection)
            return table
    raise InvalidInput(
        f"this device has no {kind} table {sha256[:16]}; put it here with: privtune tables add FILE", param="table"
    )


def adopt(source: Path, folder: Path) -> Path:
    """Check a table file from elsewhere and keep a copy in `folder`, named by its hash.

    Raises ArtifactCorrupt, StorageFull.
    """
    table = read_table(source)
    path = folder / f"{table.kind}-{table.sha256()[:24]}{SUFFIX}"
    write_table(table, path)
    return path
