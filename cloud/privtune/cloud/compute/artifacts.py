"""What jobs leave among the artifacts: checkpoints while they train, then the folder of the finished adapter.

Whatever is read is pulled first, and whatever is written is pushed (`privtune.cloud.storage`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from privtune.cloud.jobs.job_files import JobFiles
from privtune.cloud.storage import ArtifactStore
from privtune.shared.errors import ArtifactCorrupt, JobConflict, StorageFull
from privtune.shared.files import make_folder, replacing_file, replacing_folder, write_text
from privtune.shared.manifest import MANIFEST, read_manifest, sha256_file, write_manifest
from privtune.shared.modeling.adapter_folder import ADAPTER_WEIGHTS
from privtune.shared.public_table import PublicTable


class Artifacts:
    """One folder per job. Job ids come from the database, never from a client.

    Every method raises `CloudUnreachable` where the artifacts are in a bucket that does not answer.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store, self._folder = store, JobFiles(store).path

    def checkpoints(self, job_id: str, holder: str) -> Path:
        """The folder of a job's checkpoints with one device: those of another device belong to another run."""
        return self._pulled(self._checkpoints(job_id, holder))

    def keep_checkpoints(self, job_id: str, holder: str) -> None:
        """The folder of checkpoints has changed: from here on, every process on these artifacts has them."""
        self._store.push(self._checkpoints(job_id, holder))

    def adapter(self, job_id: str) -> Path:
        """The folder of a finished job's adapter. Raises `JobConflict` before the job has succeeded."""
        folder = self._adapter(job_id)
        if not self._store.kept(folder):
            raise JobConflict("this job has no adapter yet; it appears when the job has succeeded")
        return self._pulled(folder)

    def facts(self, job_id: str) -> dict[str, Any]:
        """What is written beside a finished job's adapter. Raises `JobConflict` before the job has succeeded."""
        return read_manifest(self.adapter(job_id))

    def pinned_base(self, job_id: str) -> str | None:
        """SHA-256 of the base weights that a job began with; None before its first session."""
        path = self._pulled(self._pin(job_id))
        return path.read_text() if path.exists() else None

    def pin_base(self, job_id: str, base_sha256: str) -> None:
        """Write down the base weights that a job begins with; the first ones stay. Raises `StorageFull`."""
        path = self._pulled(self._pin(job_id))
        try:
            if not path.exists():
                make_folder(path.parent)
                write_text(path, base_sha256)
                self._store.push(path)
        except OSError as error:
            raise StorageFull(f"the job's folder can't be written: {error.strerror}; free room and resume") from error

    def table(self, job_id: str) -> PublicTable | None:
        """The table that the ids of a job stand for; None if no session has sent one, or it can't be read."""
        try:
            with safe_open(self._pulled(self._table(job_id)), framework="numpy") as file:
                placed = int((file.metadata() or {})["placed"])
                rows_KD, offsets_PD = file.get_tensor("rows"), file.get_tensor("offsets")
        except (OSError, SafetensorError, KeyError, ValueError, ArtifactCorrupt):
            return None  # its device sends it again
        return PublicTable(rows_KD=rows_KD, offsets_PD=offsets_PD, placed=placed)

    def keep_table(self, job_id: str, table: PublicTable) -> None:
        """Store a job's table for its later sessions, in place of an earlier one. Raises `StorageFull`."""
        path = self._table(job_id)
        try:
            make_folder(path.parent)
            with replacing_file(path) as scratch:
                parts = {"rows": table.rows_KD, "offsets": table.offsets_PD}
                save_file(parts, scratch, metadata={"placed": str(table.placed)})
            self._store.push(path)
        except OSError as error:
            raise StorageFull(f"the job's table can't be written: {error.strerror}; free room and resume") from error

    def keep_shown(self, job_id: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        """Store a training state before and after a step for the job's device, in place of earlier ones.

        Raises `StorageFull`.
        """
        try:
            with replacing_folder(self._shown(job_id)) as scratch:
                for name, state in (("before", before), ("after", after)):
                    save_tensors(dict(state), scratch / f"{name}.safetensors")
                write_manifest(scratch)
        except OSError as error:
            raise StorageFull(f"a shown state can't be written: {error.strerror}; free room and resume") from error

    def shown(self, job_id: str) -> Path:
        """The folder of the states that were shown last. Raises `JobConflict` where there are none."""
        if not (self._shown(job_id) / MANIFEST).exists():
            raise JobConflict("no step of this job was asked to be shown")
        return self._shown(job_id)

    def drop_shown(self, job_id: str) -> None:
        """Remove them; nothing to do where there are none."""
        shutil.rmtree(self._shown(job_id), ignore_errors=True)

    @contextmanager
    def writing_adapter(self, job_id: str, **facts: object) -> Iterator[Path]:
        """A scratch folder that becomes the job's adapter, with a manifest that also holds `facts`.

        Raises `StorageFull` when it can't be written; an older adapter then stays as it was.
        """
        try:
            with replacing_folder(self._adapter(job_id)) as scratch:
                yield scratch
                write_manifest(scratch, job_id=job_id, **facts)
            self._store.push(self._adapter(job_id))
        except OSError as error:
            raise StorageFull(f"the adapter can't be written: {error.strerror}; free room and resume") from error

    def adapter_sha256(self, job_id: str) -> str:
        """SHA-256 of the LoRA weights; of the manifest, which lists every hash, for any other adapter."""
        weights = self._adapter(job_id) / ADAPTER_WEIGHTS
        return sha256_file(weights if weights.exists() else self._adapter(job_id) / MANIFEST)

    @staticmethod
    def file(folder: Path, name: str) -> Path:
        """The manifest for "", else a file that the manifest lists. Raises `ArtifactCorrupt` for any other name."""
        if not name:
            return folder / MANIFEST
        if name not in {entry["name"] for entry in read_manifest(folder)["files"]}:
            raise ArtifactCorrupt(f"the artifact has no file {name[:64]!r}; fetch its manifest first")
        return folder / name

    def _pulled(self, unit: Path) -> Path:
        self._store.pull(unit)
        return unit

    def _checkpoints(self, job_id: str, holder: str) -> Path:
        return self._folder(job_id) / "checkpoints" / holder

    def _pin(self, job_id: str) -> Path:
        return self._folder(job_id) / "base.sha256"

    def _table(self, job_id: str) -> Path:
        return self._folder(job_id) / "table.safetensors"

    def _shown(self, job_id: str) -> Path:
        return self._folder(job_id) / "shown"

    def _adapter(self, job_id: str) -> Path:
        return self._folder(job_id) / "adapter"
