"""The folder of each job under the cloud's data folder, seen from outside: how much is in it, and its removal.

What is in it is up to `privtune.cloud.compute.artifacts`. No torch here, so that REST alone starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from privtune.shared.errors import StorageFull
from privtune.shared.files import remove_folder

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

    def __init__(self, data_folder: Path) -> None:
        self._folder = data_folder / "jobs"

    def path(self, job_id: str) -> Path:
        """A job's folder, which may not exist."""
        return self._folder / job_id

    def measure(self, job_id: str) -> dict[str, Kept]:
        """What is there of a job, by kind."""
        found: dict[str, Kept] = {}
        for path in self.path(job_id).rglob("*"):
            if path.is_file():
                kind = _KINDS.get(path.relative_to(self.path(job_id)).parts[0], "unfinished files")
                found[kind] = found.get(kind, Kept()).more(path.stat().st_size)
        return found

    def remove(self, job_id: str) -> None:
        """Remove all of it; nothing to do where nothing is. Raises StorageFull."""
        try:
            remove_folder(self.path(job_id))
        except OSError as error:
            raise StorageFull(f"The files of job {job_id} can't be removed: {error.strerror}.") from error
