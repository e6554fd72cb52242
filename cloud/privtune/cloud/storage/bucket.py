"""Artifacts in a bucket that speaks S3, through fsspec; the data folder then holds copies.

UNIT/index.json     names, sizes and hashes of the unit's files
UNIT/SHA256         one file

Files are stored under their hash and the index is written last, in one request. So a reader sees the unit before or the
unit after, whole, and what an interrupted push leaves is never seen.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from privtune.cloud.storage.artifact_store import ArtifactStore
from privtune.shared.errors import (
    ArtifactCorrupt,
    CloudUnreachable,
    InvalidInput,
    PackageMissing,
    PrivTuneError,
    StorageFull,
)
from privtune.shared.files import make_folder, replacing_file
from privtune.shared.manifest import sha256_file
from privtune.shared.wording import install

log = logging.getLogger(__name__)

_INDEX = "index.json"
_BLOB = re.compile(r"/[0-9a-f]{64}$")
_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,62})(?P<prefix>(/[\w.-]+)*)/?", re.ASCII)
# A server that hangs fails a call within a minute; s3fs itself tries again what may be tried again.
_PATIENCE = {"connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 2}}
_Index = dict[str, dict[str, Any]]  # by path below the unit ("" for a unit of one file): sha256, size


def open_artifacts(folder: Path, url: str | None) -> ArtifactStore:
    """Artifacts in `folder`, or in the bucket at `url`, s3://BUCKET or s3://BUCKET/PREFIX, with copies in `folder`.

    Address and credentials come from the AWS variables and files, as for every other program. Raises InvalidInput.
    """
    if url is None:
        return ArtifactStore(folder)
    found = _URL.fullmatch(url)
    if found is None:
        raise InvalidInput(
            "--artifacts is not s3://BUCKET or s3://BUCKET/PREFIX. The server's address and the credentials come from "
            "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    try:
        import fsspec
        import s3fs  # noqa: F401  # fsspec would name another package
    except ModuleNotFoundError as error:
        raise PackageMissing(f"--artifacts s3://… needs s3fs: {install('s3')}", detail=str(error)) from error
    system = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True, config_kwargs=_PATIENCE)
    return BucketStore(folder, system, found["bucket"] + found["prefix"])


class BucketStore(ArtifactStore):
    """Units in a file system of fsspec, below `root`, with copies below `folder`. Thread-safe.

    One process pushes a unit at a time: the one that holds the job's lease.
    """

    def __init__(self, folder: Path, system: Any, root: str) -> None:
        super().__init__(folder)
        self._system, self._root = system, root
        self._seen: dict[str, _Index] = {}  # what the copies of this process are

    def reach(self) -> None:
        """See `ArtifactStore`: writes an empty file."""
        try:
            self._system.pipe_file(f"{self._root}/.reached", b"")
        except FileNotFoundError as error:
            raise InvalidInput(f"--artifacts: there is no bucket {self._root.partition('/')[0]!r}.") from error
        except PermissionError as error:
            raise InvalidInput(
                f"--artifacts: s3://{self._root} refuses to be written; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
                "and the bucket's policy.",
                detail=str(error),
            ) from error
        except Exception as error:  # whatever the library underneath calls it
            if "credentials" in str(error).lower():
                raise InvalidInput("--artifacts: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.") from error
            raise CloudUnreachable(
                f"--artifacts: the server of s3://{self._root} does not answer; check AWS_ENDPOINT_URL.",
                detail=repr(error),
            ) from error

    def push(self, unit: Path) -> None:
        """See `ArtifactStore`."""
        key, files, index = self._key(unit), _files(unit), _Index()
        for name, path in files.items():
            index[name] = {"sha256": sha256_file(path), "size": path.stat().st_size}
        wanted = {entry["sha256"] for entry in index.values()}
        self._seen.pop(key, None)  # if this fails, the next pull brings back what is kept
        with _told():
            before, there = self._index(key) or {}, self._names(key)
            kept = {entry["sha256"] for entry in before.values()}
            for name, path in files.items():
                if index[name]["sha256"] not in there & kept:  # what an interrupted push has left may be swept now
                    self._system.put_file(str(path), f"{key}/{index[name]['sha256']}")
            self._system.pipe_file(f"{key}/{_INDEX}", json.dumps(index).encode())
            if old := kept - wanted:  # not all else that is there: another process may be writing it
                self._system.rm([f"{key}/{name}" for name in old & there])
        self._seen[key] = index

    def pull(self, unit: Path) -> None:
        """See `ArtifactStore`."""
        key = self._key(unit)
        with _told():
            index = self._index(key)
            if index is None:
                self._seen.pop(key, None)
                _drop(unit)
                return
            if self._seen.get(key) == index and unit.exists():
                return
            for name, entry in index.items():
                self._fetch(key, unit / name if name else unit, entry)
            for name, path in _files(unit).items():
                if name not in index:
                    path.unlink()
            self._seen[key] = index

    def kept(self, unit: Path) -> bool:
        """See `ArtifactStore`."""
        with _told():
            return self._index(self._key(unit)) is not None

    def measure(self, folder: Path) -> Iterator[tuple[PurePosixPath, int]]:
        """See `ArtifactStore`."""
        key = self._key(folder)
        with _told():
            found = self._system.find(key, detail=True)
        for path, about in found.items():
            name = PurePosixPath(path).relative_to(PurePosixPath(key))
            if name.name != _INDEX:
                yield name, int(about["size"])

    def remove(self, folder: Path) -> None:
        """See `ArtifactStore`: indexes go first, so that nobody finds a part. Raises CloudUnreachable as well."""
        with _told():
            found = sorted(self._system.find(self._key(folder)), key=lambda path: not path.endswith(f"/{_INDEX}"))
            self._delete(found)
        for key in [key for key in self._seen if f"{key}/".startswith(f"{self._key(folder)}/")]:
            del self._seen[key]
        super().remove(folder)

    def drop_unnamed(self, before: float) -> int:
        """See `ArtifactStore`. Reads every index."""
        count = 0
        with _told():
            units = {path.rpartition("/")[0] for path in self._old(self._root, before)}
            for unit in sorted(units):
                if left := self._unnamed(unit, before):
                    self._delete(left)
                    count += len(left)
        return count

    def _unnamed(self, unit: str, before: float) -> list[str]:
        """Files of a unit, last written before this time, that its index does not name."""
        old = self._old(unit, before)
        named = {entry["sha256"] for entry in (self._index(unit) or {}).values()}
        return [path for path in old if path.rpartition("/")[2] not in named]

    def _old(self, below: str, before: float) -> list[str]:
        found = self._system.find(below, detail=True).items()
        return [path for path, about in found if _BLOB.search(path) and about["LastModified"].timestamp() < before]

    def copies(self, folder: Path) -> set[str]:
        """See `ArtifactStore`."""
        return {copy.name for copy in folder.iterdir()} if folder.is_dir() else set()

    def forget_copies(self, folder: Path, names: Collection[str]) -> None:
        """See `ArtifactStore`."""
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)

    def _key(self, unit: Path) -> str:
        return f"{self._root}/{unit.relative_to(self.folder).as_posix()}"

    def _delete(self, paths: list[str]) -> None:
        for start in range(0, len(paths), 500):
            self._system.rm(paths[start : start + 500])

    def _index(self, key: str) -> _Index | None:
        try:
            index: _Index = json.loads(self._system.cat_file(f"{key}/{_INDEX}"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ArtifactCorrupt(f"{key}/{_INDEX} can't be read") from error
        return index

    def _names(self, key: str) -> set[str]:
        return {path.rpartition("/")[2] for path in self._system.find(key)}

    def _fetch(self, key: str, target: Path, entry: dict[str, Any]) -> None:
        """Bring one file here unless it is here. Raises ArtifactCorrupt for a unit's only file that is damaged."""
        sha256 = str(entry["sha256"])
        if target.is_file() and sha256_file(target) == sha256:
            return
        make_folder(target.parent)
        try:
            with replacing_file(target) as scratch:
                self._system.get_file(f"{key}/{sha256}", str(scratch))
                if sha256_file(scratch) != sha256:
                    raise ArtifactCorrupt(f"{key}/{sha256} does not match its hash")
        except (ArtifactCorrupt, FileNotFoundError) as error:
            target.unlink(missing_ok=True)
            if target == self.folder / PurePosixPath(key).relative_to(self._root):
                raise ArtifactCorrupt(f"{key} is damaged; restore it from a backup") from error
            log.warning("a stored file is damaged or gone", extra={"file": f"{key}/{sha256}"})


def _files(unit: Path) -> dict[str, Path]:
    """The files of a unit by their path below it, without what is still being written."""
    if not unit.is_dir():
        return {"": unit}
    found = {path.relative_to(unit): path for path in unit.rglob("*") if path.is_file()}
    return {n.as_posix(): path for n, path in found.items() if not any(part.startswith(".") for part in n.parts)}


def _drop(unit: Path) -> None:
    if unit.is_dir():
        shutil.rmtree(unit, ignore_errors=True)
    else:
        unit.unlink(missing_ok=True)


@contextmanager
def _told() -> Iterator[None]:
    """Raise CloudUnreachable for whatever the library underneath raises, StorageFull where this disk is full."""
    try:
        yield
    except PrivTuneError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise StorageFull("The cloud's copies of artifacts can't be written: disk full or read-only.") from error
        raise CloudUnreachable(
            "The cloud's store of artifacts does not answer. Try again.", detail=repr(error)
        ) from error
