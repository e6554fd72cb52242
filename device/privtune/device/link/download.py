"""Files from the cloud, resumable and hash-checked: the bottom package and the trained adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from privtune.device.link.rpc import Link
from privtune.shared.errors import ArtifactCorrupt, CloudUnreachable, StorageFull
from privtune.shared.manifest import MANIFEST, read_manifest, sha256_file, verify


def fetch_folder(link: Link, kind: int, job_id: str, target: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """Fetch every file of an artifact into `target`, which appears only when all hashes match.

    An interrupted fetch goes on where it stopped. Raises `ArtifactCorrupt` when a file still differs after a fresh
    copy, `StorageFull` when it can't be written.
    """
    if (target / MANIFEST).exists():
        verify(target)
        return target
    scratch = target.with_name(f".{target.name}.part")
    try:
        _fetch(link, kind, job_id, scratch, say)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except OSError as error:
        raise StorageFull(f"{target.parent} can't be written: {error.strerror}; free room and run again") from error
    return target


def _fetch(link: Link, kind: int, job_id: str, scratch: Path, say: Callable[[str], None]) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    manifest = b"".join(link.fetch(kind, job_id, ""))
    try:
        json.loads(manifest)
    except ValueError as error:
        raise ArtifactCorrupt("the cloud sent an unreadable manifest") from error
    (scratch / MANIFEST).write_bytes(manifest)
    for entry in read_manifest(scratch)["files"]:
        path = scratch / entry["name"]
        say(f"fetching {entry['name']} ({entry['size'] / 1e6:.1f} MB)")
        for attempt in (0, 1):
            _append(link, kind, job_id, path, entry["size"])
            if sha256_file(path) == entry["sha256"]:
                break
            path.unlink()
            if attempt:
                raise ArtifactCorrupt(f"{entry['name']} from the cloud does not match its hash; nothing was used")


def _append(link: Link, kind: int, job_id: str, path: Path, size: int) -> None:
    have = path.stat().st_size if path.exists() else 0
    if have > size:
        path.unlink()
        have = 0
    with path.open("ab") as file:
        for data in link.fetch(kind, job_id, path.name, have) if have < size else ():
            have += len(data)
            if have > size:
                raise ArtifactCorrupt(f"the cloud sent more of {path.name} than its manifest says; nothing was used")
            file.write(data)
    if have < size:
        raise CloudUnreachable(f"the cloud sent only a part of {path.name}; run again to go on from there")
