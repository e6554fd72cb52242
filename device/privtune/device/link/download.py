"""Fetches files from the cloud, resumably, and checks their hashes: the bottom package and the trained adapter."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from privtune.device.link.rpc import Link
from privtune.shared.at_rest import append, size_of, write_bytes
from privtune.shared.errors import ArtifactCorrupt, CloudUnreachable, StorageFull
from privtune.shared.files import replacing_folder
from privtune.shared.manifest import MANIFEST, read_manifest, sha256_file, verify
from privtune.split.v1 import split_pb2 as pb

MAX_MANIFEST_BYTES = 1 << 20


def artifact_of(kind: int, job_id: str) -> pb.FetchRequest:
    """An artifact of a job. kind: an `ArtifactKind` of the protocol."""
    return pb.FetchRequest(kind=kind, job_id=job_id)  # type: ignore[arg-type]


def fetch_folder(
    link: Link,
    artifact: pb.FetchRequest,
    target: Path,
    say: Callable[[str], None] = lambda _: None,
    most_bytes: int = sys.maxsize,
) -> Path:
    """Fetch every file of an artifact into `target`, which appears only when all hashes match.

    An interrupted fetch resumes where it stopped.

    Args:
        link: to the cloud's gateway.
        artifact: which one; see `artifact_of`.
        target: the folder to make; one that is whole already is only checked.
        say: gets a line per file.
        most_bytes: of all files together.

    Raises:
        ArtifactCorrupt: a file still differs after a second copy, or the cloud's manifest is unreadable or too much.
        StorageFull: a file can't be written.
        CloudUnreachable: the connection was lost.
    """
    if (target / MANIFEST).exists():
        verify(target)
        return target
    try:
        with replacing_folder(target, resumable=True) as scratch:
            _fetch(link, artifact, scratch, say, most_bytes)
    except OSError as error:
        raise StorageFull(f"{target.parent} can't be written: {error.strerror}; free room and run again") from error
    return target


def fetch_manifest(link: Link, artifact: pb.FetchRequest) -> bytes:
    """The manifest of an artifact, unread. Raises ArtifactCorrupt for one that is too large."""
    manifest = bytearray()
    for data in link.fetch(artifact, ""):
        manifest += data
        if len(manifest) > MAX_MANIFEST_BYTES:
            raise ArtifactCorrupt(f"the cloud's manifest is over {MAX_MANIFEST_BYTES:,} bytes; nothing was used")
    return bytes(manifest)


def _fetch(
    link: Link, artifact: pb.FetchRequest, scratch: Path, say: Callable[[str], None], most_bytes: int = sys.maxsize
) -> None:
    write_bytes(scratch / MANIFEST, fetch_manifest(link, artifact))
    entries = read_manifest(scratch)["files"]
    needed, free = sum(entry["size"] for entry in entries), shutil.disk_usage(scratch).free
    if needed > most_bytes:
        raise ArtifactCorrupt(f"the cloud's files are of {needed:,} bytes, over the {most_bytes:,} that they may have")
    have = sum(path.stat().st_size for path in scratch.iterdir() if path.name != MANIFEST)
    if needed - have > free:
        raise StorageFull(f"the cloud's files need {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; free room")
    for entry in entries:
        path = scratch / entry["name"]
        say(f"fetching {entry['name']} ({entry['size'] / 1e6:.1f} MB)")
        for attempt in (0, 1):
            _append(link, artifact, path, entry["size"])
            if sha256_file(path) == entry["sha256"]:
                break
            path.unlink()
            if attempt:
                raise ArtifactCorrupt(f"{entry['name']} from the cloud does not match its hash; nothing was used")


def _append(link: Link, artifact: pb.FetchRequest, path: Path, size: int) -> None:
    have = size_of(path) if path.exists() else 0
    if have > size:
        path.unlink()
        have = 0
    with closing(append(path)) as file:
        for data in link.fetch(artifact, path.name, have) if have < size else ():
            have += len(data)
            if have > size:
                raise ArtifactCorrupt(f"the cloud sent more of {path.name} than its manifest says; nothing was used")
            file.write(data)
    if have < size:
        raise CloudUnreachable(f"the cloud sent only a part of {path.name}; run again to resume")
