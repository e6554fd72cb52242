"""The vault of an encrypted home: how its files are read and written with its key.

Encrypted is what `PRIVATE` names, and every database: SQLCipher encrypts and authenticates each page and journal; other
files: `sealed_files`. Each file has a key of its own by its name in the home, so that none can take another's place.
"""

from __future__ import annotations

import io
import os
import re
import sqlite3
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privtune.device.home.encryption.sealed_files import (
    GROWING,
    WHOLE,
    FileKey,
    SealedReader,
    SealingAppender,
    SealingWriter,
    begins_torn,
    damaged,
    is_sealed,
)
from privtune.shared.at_rest import Appender

# At the top of a home. In clear stay parts of the public model and public texts, what the owner writes, locks, and the
# certificates of clouds, which OpenSSL reads.
PRIVATE = ("jobs", "fitted", "tables", "models", "audits", "identities", "privtune.log")
LOGS = (".jsonl", ".frames", ".log")  # endings of files that grow: nothing else is appended to
# A scratch name of `shared.files` or of an import, and what it will be called.
_DATABASE = re.compile(r"[^/]+\.sqlite(-wal|-shm|-journal)?")
_SCRATCH = re.compile(r"^\.(?P<name>.+?)(\.\d+)?\.part$")


class HomeVault:
    """An open vault, an `at_rest.Vault`. Raises OSError in every call, sqlite3.Error from `connect`.

    root: the home. key: of the home, 32 bytes.
    """

    def __init__(self, root: Path, key: bytes) -> None:
        self._root, self._key = Path(os.path.realpath(root)), key

    def covers(self, path: Path) -> bool:
        """Whether a file of the home is one of those that are encrypted."""
        name = self._name(path)
        private = name.partition("/")[0] in PRIVATE and not name.endswith(("/lock", ".pem", ".pem.new"))
        return private or _DATABASE.fullmatch(name) is not None

    def open(self, path: Path) -> BinaryIO:
        """What is in a file; one in clear has no place here."""
        file = path.open("rb")
        try:
            if not is_sealed(file) and not (path.suffix in LOGS and begins_torn(file)):
                raise damaged()
            return cast(BinaryIO, io.BufferedReader(SealedReader(file, self.file_key(path)), 1 << 16))
        except BaseException:
            file.close()
            raise

    def size(self, path: Path) -> int:
        """Its bytes, in clear."""
        with self.open(path) as file:
            return file.seek(0, os.SEEK_END)

    def write(self, path: Path, data: bytes) -> None:
        """Make or replace a file."""
        with path.open("wb") as target:
            self.seal(io.BytesIO(data), target, path)

    def seal(self, source: BinaryIO, target: BinaryIO, path: Path) -> None:
        """Encrypt a stream as the file at this path."""
        writer = SealingWriter(target, self.file_key(path), GROWING if path.suffix in LOGS else WHOLE)
        while block := source.read(1 << 20):
            writer.write(block)
        writer.finish()

    def append(self, path: Path, *, new: bool) -> Appender:
        """Open a file to append to it."""
        return SealingAppender(path, self.file_key(path), new=new)

    def connect(self, path: Path, timeout_s: float, *, named: Path | None = None) -> sqlite3.Connection:
        """Open a database, or make an encrypted one. named: whose copy it is."""
        import sqlcipher3.dbapi2 as sqlcipher

        connection = sqlcipher.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA cipher_log_level = NONE")  # it would write to the terminal
        connection.execute(f"PRAGMA key = {self.database_key(named or path)}")
        return cast(sqlite3.Connection, connection)

    def database_key(self, path: Path) -> str:
        """SQLCipher's raw key for a database, as its pragma and ATTACH take it."""
        return f"\"x'{_derived(self._key, f'privtune database {self._name(path)}'.encode()).hex()}'\""

    def file_key(self, path: Path) -> FileKey:
        """The key for the file at this path."""
        return FileKey(key=self._key, name=self._name(path))

    def _name(self, path: Path) -> str:
        return "/".join(map(final_name, Path(os.path.realpath(path)).relative_to(self._root).parts))


def final_name(name: str) -> str:
    """What a file or folder with a scratch name will be called; any other name itself."""
    found = _SCRATCH.match(name)
    return found["name"] if found else name


@lru_cache(maxsize=256)
def _derived(key: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, None, info).derive(key)
