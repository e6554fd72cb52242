"""The folder of each job among the artifacts, seen from outside: how much is in it, and its removal.

What is in it is up to `privtune.cloud.compute.artifacts`. No torch here, so that REST alone starts fast.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from privtune.cloud.storage import ArtifactStore
from privtune.shared.errors import StorageFull

_KINDS = {
    "checkpoints": "checkpoints",
    "adapter": "adapter",
    "table.safetensors": "table of ids",
    "shown": "states shown to the device",
    "base.sha256": "hash of the base",
}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What there is of one kind.

    count: files or rows.
    bytes: of files.
    """

    count: int = 0
    bytes: int = 0

    def more(self, size: int) -> Kept:
        """With one file more."""
        return replace(self, count=self.count + 1, bytes=self.bytes + size)


class JobFiles:
    """The folders of all jobs. Job ids come from the store, never from a client."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store, self._folder = store, store.folder / "jobs"

    def path(self, job_id: str) -> Path:
        """A job's folder, which may not exist."""
        return self._folder / job_id

    def measure(self, job_id: str) -> dict[str, Kept]:
        """What is there of a job, by kind."""
        found: dict[str, Kept] = {}
        for path, size in self.store.measure(self.path(job_id)):
            kind = _KINDS.get(path.parts[0], "unfinished files")
            found[kind] = found.get(kind, Kept()).more(size)
        return found

    def remove(self, job_id: str) -> None:
        """Remove all of it; nothing to do where nothing is. Raises StorageFull, CloudUnreachable."""
        try:
            self.store.remove(self.path(job_id))
        except OSError as error:
            raise StorageFull(f"The files of job {job_id} can't be removed: {error.strerror}.") from error

    def copies(self) -> set[str]:
        """Jobs of which this disk has copies of what is kept elsewhere."""
        return self.store.copies(self._folder)

    def forget_copies(self, job_ids: Collection[str]) -> None:
        """Free this disk of the copies of jobs; they come again when they are asked for."""
        self.store.forget_copies(self._folder, job_ids)
