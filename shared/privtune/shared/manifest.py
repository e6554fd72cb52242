"""The manifest of a folder: the names, sizes and SHA-256 of its files, written last and checked on every read."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from privtune.shared.at_rest import open_file, read_text, size_of, write_bytes
from privtune.shared.errors import ArtifactCorrupt

MANIFEST = "manifest.json"
MAX_FILES = 256
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def write_manifest(folder: Path, **facts: object) -> dict[str, Any]:
    """List every file of a flat folder with its size and hash, plus `facts`. Written last: it marks a whole folder.

    The folder is a scratch one, which is flushed to disk before it gets its name. Raises OSError.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    files = [{"name": n, "size": size_of(folder / n), "sha256": sha256_file(folder / n)} for n in names]
    manifest: dict[str, Any] = {**facts, "files": files}
    write_bytes(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises ArtifactCorrupt when there is none, or when a name in it leaves the folder."""
    try:
        manifest: dict[str, Any] = json.loads(read_text(folder / MANIFEST))
        names = [entry["name"] for entry in manifest["files"]]
        sizes = [entry["size"] for entry in manifest["files"]]
        hashes = [entry["sha256"] for entry in manifest["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactCorrupt(f"{folder.name}: no readable {MANIFEST}; fetch or create it again") from error
    if len(names) > MAX_FILES or not all(type(size) is int and size >= 0 for size in sizes):
        raise ArtifactCorrupt(f"{folder.name}: the manifest lists impossible files; fetch or create it again")
    if not all(isinstance(value, str) for value in hashes) or len({str(name) for name in names}) < len(names):
        raise ArtifactCorrupt(f"{folder.name}: the manifest lists impossible files; fetch or create it again")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) and name != MANIFEST for name in names):
        raise ArtifactCorrupt(f"{folder.name}: the manifest names a file outside the folder; do not use it")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of the manifest. Raises ArtifactCorrupt for the first that is missing or has changed."""
    manifest = read_manifest(folder)
    for entry in manifest["files"]:
        path = folder / entry["name"]
        if not path.is_file() or sha256_file(path) != entry["sha256"]:
            raise ArtifactCorrupt(
                f"{folder.name}/{entry['name']} is missing or does not match its hash; fetch it again"
            )
    return manifest
