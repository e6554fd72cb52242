"""Files of a folder that may be encrypted: everything private in it is read and written through here.

A folder with a vault has a `vault.json` at its top, and nothing in it is read or written in clear by accident: without
its key every call below raises HomeLocked. Elsewhere, as in the cloud, these are the plain calls. The vault itself is
the device's (`privtune.device.home.encryption.vault`), since only it has what can encrypt.
"""

from __future__ import annotations

import io
import os
import sqlite3
from pathlib import Path
from typing import BinaryIO, Protocol

from privtune.shared.errors import HomeLocked

MARK = "vault.json"  # at the top of a folder with a vault


class Damaged(OSError):
    """An encrypted file was changed, cut off, or stood elsewhere."""


class Appender(Protocol):
    """A file that grows. Raises OSError in every call."""

    def write(self, data: bytes) -> None:
        """Append; on return the operating system has all of it, so that it outlives this process."""

    def sync(self) -> None:
        """Flush to disk what was written."""

    def close(self) -> None:
        """Close the file."""


class Vault(Protocol):
    """The key of a folder. Raises OSError in every call, `Damaged` among them."""

    def covers(self, path: Path) -> bool:
        """Whether a file of the folder is one of those that are encrypted."""

    def open(self, path: Path) -> BinaryIO:
        """What is in a file."""

    def size(self, path: Path) -> int:
        """Its bytes, in clear."""

    def write(self, path: Path, data: bytes) -> None:
        """Make or replace a file."""

    def append(self, path: Path, *, new: bool) -> Appender:
        """See `append`."""

    def connect(self, path: Path, timeout_s: float, *, named: Path | None = None) -> sqlite3.Connection:
        """Open an encrypted database (`sqlite.connect`), with the key of the file `named` if it is a copy."""


_vaults: dict[Path, Vault] = {}  # of this process, by folder


def use_vault(folder: Path, vault: Vault | None) -> None:
    """From here on this process reads and writes the folder with this vault; None: with none."""
    root = Path(os.path.realpath(folder))
    if vault is None:
        _vaults.pop(root, None)
    else:
        _vaults[root] = vault


def vault_of(path: Path) -> Vault | None:
    """The vault that encrypts this file; None for one in clear. Raises HomeLocked if its key is not here."""
    real = Path(os.path.realpath(path))
    for folder in real.parents:
        vault = _vaults.get(folder)
        if vault is not None:
            return vault if vault.covers(real) else None
        if (folder / MARK).exists():
            raise HomeLocked(f"{folder} is encrypted, and this process has not got its key.")
    return None


def open_file(path: Path) -> BinaryIO:
    """A file, to be read from any place on. Raises OSError."""
    vault = vault_of(path)
    return path.open("rb") if vault is None else vault.open(path)


def read_bytes(path: Path) -> bytes:
    """All of a file. Raises OSError."""
    with open_file(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """All of a UTF-8 file, line ends as `\\n`. Raises OSError, UnicodeDecodeError."""
    return io.TextIOWrapper(io.BytesIO(read_bytes(path)), encoding="utf-8").read()


def size_of(path: Path) -> int:
    """Bytes of a file, in clear. Raises OSError."""
    vault = vault_of(path)
    return path.stat().st_size if vault is None else vault.size(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Make or replace a file, not at once (`files.replacing_file`) nor flushed. Raises OSError."""
    vault = vault_of(path)
    if vault is None:
        path.write_bytes(data)
    else:
        vault.write(path, data)


def append(path: Path, *, new: bool = False) -> Appender:
    """Open a file to append to it, readable by its owner alone. new: FileExistsError for one that exists."""
    vault = vault_of(path)
    return _Plain(path, new) if vault is None else vault.append(path, new=new)


class _Plain:
    """An `Appender` in clear."""

    def __init__(self, path: Path, new: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_EXCL if new else 0) | getattr(os, "O_BINARY", 0)
        self._file = os.open(path, flags, 0o600)

    def write(self, data: bytes) -> None:
        write_all(self._file, data)

    def sync(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything. Raises OSError; part of it may be written then."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
