"""Reads disks on which power was lost, an encrypted home among them; what was read of a file once is not read again."""

from __future__ import annotations

import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors.numpy import load

from privtune.device.home.encryption.sealed_files import MAGIC
from privtune.device.home.encryption.vault import HomeVault
from privtune.device.home.encryption.vault_key import WrappedKey
from privtune.shared import at_rest
from privtune.shared.manifest import MANIFEST, verify
from privtune.shared.sqlite import connect
from tests.support.losing_disk import Disk, Loss
from tests.support.strace import Operation

Found = dict[str, bytes | None]
CHANCES = 2  # disks that chance makes of one moment
HOME = "home"  # below a device's disk


def disks(root: Path, operations: list[Operation]) -> Iterator[tuple[int, Loss, int, Found]]:
    """Every moment at which a disk was another one, under each loss: operations so far, loss, seed, what is there."""
    disk, before = Disk(root), dict[tuple[Loss, int], Found]()
    for count, operation in enumerate(operations, 1):
        disk.apply(operation)
        for loss in Loss:
            for seed in range(CHANCES if loss is Loss.SOME else 1):
                found = disk.after(loss, random.Random(f"{count} {seed}"))
                if found != before.get((loss, seed)) or operation.kind == "send":
                    before[loss, seed] = found
                    yield count, loss, seed, found


class Reader:
    """key: of the encrypted home `HOME` on these disks; None: it is in clear."""

    def __init__(self, scratch: Path, key: bytes | None = None) -> None:
        self._scratch, self._key, self._known = scratch, key, dict[Any, Any]()

    def once(self, what: str, parts: Found, read: Callable[[Path], Any]) -> Any:
        """What `read` makes of these files of a disk, laid out in a folder."""
        key = what, tuple(sorted(parts.items()))
        if key not in self._known:
            folder = Path(tempfile.mkdtemp(dir=self._scratch))
            (folder / HOME).mkdir()
            if self._key is not None:
                at_rest.use_vault(folder / HOME, HomeVault(folder / HOME, self._key))
            for name, data in parts.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if data is not None:
                    path.write_bytes(data)
            try:
                self._known[key] = read(folder)
            finally:
                at_rest.use_vault(folder / HOME, None)
                shutil.rmtree(folder)
        return self._known[key]

    def rows(self, found: Found, name: str, query: str) -> list[tuple[Any, ...]]:
        """Rows of a database, after SQLite has recovered it; none where it or its table does not exist yet."""
        parts = {key: data for key, data in found.items() if key.startswith(name) and key[-4:] != "-shm"}
        return self.once(query, parts, lambda folder: _rows(folder / name, query)) if name in parts else []

    def unreadable(self, found: Found) -> list[str]:
        """Files under their last names that no one can read, and folders that do not match their manifest."""
        wrong = []
        for name, data in found.items():
            path = PurePosixPath(name)
            if data is None or any(part.startswith(".") for part in path.parts) or ".sqlite" in path.name:
                continue
            parts: Found = {name: data}
            if path.name == MANIFEST and "/checkpoints/" not in name:
                parts = below(found, f"{path.parent}/")
            trouble = self.once("file", parts, lambda folder, of=name: _trouble(folder / of))
            wrong += [f"{name}: {trouble}"] if trouble else []
        return wrong

    def not_sealed(self, found: Found) -> list[str]:
        """Private files of an encrypted home that are in clear, under whatever name, or that no key opens any more."""
        if self._key is None:
            return []
        private = HomeVault(Path("/") / HOME, b"")
        names = [name for name, data in below(found, f"{HOME}/").items() if data and private.covers(Path("/") / name)]
        wrong = [f"{name} is in clear" for name in names if _plain(name, found[name] or b"")]
        kept = found.get(f"{HOME}/{at_rest.MARK}")
        if names and (kept is None or WrappedKey.parse(kept).key() != self._key):
            wrong.append(f"{len(names)} files have lost their key")
        return wrong


def below(found: Found, prefix: str) -> Found:
    """Files of a folder."""
    return {name: data for name, data in found.items() if name.startswith(prefix)}


def _plain(name: str, data: bytes) -> bool:
    if ".sqlite" in name:
        return data.startswith(b"SQLite format 3")
    return not MAGIC.startswith(data[: len(MAGIC)]) and not data.startswith(b"\0")


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(connect(path)) as database:
        database.execute("PRAGMA synchronous=OFF")
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        try:
            return database.execute(query).fetchall()
        except Exception as error:  # SQLCipher has an OperationalError of its own
            if "no such table" in str(error):
                return []
            raise


def _trouble(path: Path) -> str:
    """Why a file can't be read; empty if it can."""
    try:
        if path.name == MANIFEST and len(list(path.parent.iterdir())) > 1:
            verify(path.parent)
            return ""
        data = at_rest.read_bytes(path)
        if path.suffix == ".json":
            json.loads(data)
        elif path.suffix == ".safetensors":
            load(data)
        elif path.suffix == ".npz":
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                list(stored.values())
        elif path.suffix in (".sha256", ".txt", ".keys", ".ready") and not data:
            return "is empty"
    except Exception as error:  # whatever it is, the file is not whole
        return f"{type(error).__name__}: {error}"[:200]
    return ""
