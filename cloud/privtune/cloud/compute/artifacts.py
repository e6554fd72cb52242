"""Where a cloud keeps what jobs make: checkpoints while they train, the PEFT folder when they are done."""

from __future__ import annotations

import shutil
from pathlib import Path

from privtune.shared.errors import ArtifactCorrupt, JobConflict, StorageFull
from privtune.shared.manifest import MANIFEST, read_manifest, sha256_file, write_manifest

ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Artifacts:
    """Folders by job under the cloud's data folder. Job ids come from the store, never from a client."""

    def __init__(self, data_folder: Path) -> None:
        self._jobs = data_folder / "jobs"

    def checkpoints(self, job_id: str) -> Path:
        """The folder of a job's checkpoints."""
        return self._jobs / job_id / "checkpoints"

    def adapter(self, job_id: str) -> Path:
        """The folder of a finished job's adapter; `JobConflict` while there is none."""
        folder = self._jobs / job_id / "adapter"
        if not (folder / MANIFEST).exists():
            raise JobConflict("this job has no adapter yet; it appears when the job has succeeded")
        return folder

    def base_of(self, job_id: str) -> str | None:
        """SHA-256 of the base that a job's adapter was trained on; None without an adapter, or where it is not told."""
        folder = self._jobs / job_id / "adapter"
        return read_manifest(folder).get("base_sha256") if (folder / MANIFEST).exists() else None

    def begin_adapter(self, job_id: str) -> Path:
        """An empty scratch folder to write a job's adapter into."""
        scratch = self._jobs / job_id / ".adapter.part"
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        except OSError as error:
            raise StorageFull(f"the adapter can't be written: {error.strerror}") from error
        return scratch

    def finish_adapter(self, job_id: str, scratch: Path, **facts: object) -> str:
        """Give the scratch folder its manifest and its place; returns the SHA-256 of the weights."""
        try:
            write_manifest(scratch, job_id=job_id, **facts)
            target = self._jobs / job_id / "adapter"
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
        except OSError as error:
            raise StorageFull(f"the adapter can't be written: {error.strerror}; free room and resume") from error
        weights = target / ADAPTER_WEIGHTS
        return sha256_file(weights if weights.exists() else target / MANIFEST)

    @staticmethod
    def file(folder: Path, name: str) -> Path:
        """A file that the folder's manifest lists (or the manifest for ""); anything else is refused."""
        if not name:
            return folder / MANIFEST
        if name not in {entry["name"] for entry in read_manifest(folder)["files"]}:
            raise ArtifactCorrupt(f"the artifact has no file {name[:64]!r}; fetch its manifest first")
        return folder / name
