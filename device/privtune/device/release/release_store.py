"""The once-per-record store: a record's release is drawn once, kept here, and sent as the same bytes ever after.

Fresh noise an epoch would let the cloud average it away. So the bytes are committed to disk BEFORE they may be sent,
and whatever is on disk wins over any later draw: after a crash, a retry, a resume or a second process.

One SQLite file a device data set (WAL, synchronous FULL). It holds only what the cloud has or will get, plus hashes.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from privtune.shared.errors import ArtifactCorrupt, InvalidInput, JobConflict, StorageFull
from privtune.shared.sqlite import use_write_ahead_log

_SCHEMA = """
CREATE TABLE IF NOT EXISTS scopes (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS releases (
    scope INTEGER NOT NULL, record BLOB NOT NULL, rows INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (scope, record)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (only INTEGER PRIMARY KEY CHECK (only = 0), bytes INTEGER NOT NULL);
INSERT OR IGNORE INTO totals VALUES (0, 0);
CREATE TABLE IF NOT EXISTS identity (only INTEGER PRIMARY KEY CHECK (only = 0), id TEXT NOT NULL);
INSERT OR IGNORE INTO identity VALUES (0, lower(hex(randomblob(16))));
"""
_BATCH = 500  # keys in one query; SQLite allows 32,766 variables


@dataclass(frozen=True)
class RecordKey:
    """A record of a data set: its index (uint64), and a fingerprint of its content, so that an edited file is new."""

    index: int
    content: bytes

    def packed(self) -> bytes:
        """The key as it is stored: 8 bytes of index, then the fingerprint."""
        if not 0 <= self.index < 2**64:
            raise InvalidInput(f"a record's index must fit 64 bits, not {self.index}")
        return self.index.to_bytes(8, "big") + self.content


@dataclass(frozen=True)
class EncodedRelease:
    """What goes on the wire for one record: `rows` vectors, encoded."""

    rows: int
    data: bytes


def content_fingerprint(ids: Sequence[int]) -> bytes:
    """16 bytes over a record's token ids (as released: after truncation)."""
    return hashlib.sha256(b"".join(int(i).to_bytes(8, "big", signed=True) for i in ids)).digest()[:16]


def record_keys(ids: Sequence[npt.NDArray[np.int32]]) -> list[RecordKey]:
    """A store key for each record of a data set: its content, and how many equal records came before it.

    Not its place: an owner who shuffles or samples a file again gets the same releases, not fresh ones to average.
    """
    seen: Counter[bytes] = Counter()
    keys = []
    for ids_T in ids:
        content = content_fingerprint(ids_T.tolist())
        keys.append(RecordKey(seen[content], content))
        seen[content] += 1
    return keys


def release_fingerprint(*, mechanism: str, model: str, cut: int, codec: str) -> str:
    """Fingerprint of everything that decides the bytes of a release, next to the record itself."""
    return hashlib.sha256("\0".join((mechanism, model, str(cut), codec)).encode()).hexdigest()


class ReleaseStore:
    """Releases of one (mechanism, model, cut, codec), in a file that other settings may share.

    path: the file, made if missing; fingerprint: `release_fingerprint(...)`; max_bytes: bound on the encoded bytes
    in the whole file. Safe to use from several threads and processes. Nothing is ever evicted: a release that was
    forgotten would be drawn again, and the two draws could be averaged.
    Raises StorageFull (disk or bound), ArtifactCorrupt (damaged file), JobConflict (locked by another process).
    """

    _holds = "releases"
    _if_deleted = "releases its records anew"

    def __init__(self, path: Path, fingerprint: str, max_bytes: int) -> None:
        if max_bytes < 1:
            raise InvalidInput(f"the bound of the store of {self._holds} must be at least one byte", param="max_bytes")
        self._path, self._max_bytes, self.fingerprint = path, max_bytes, fingerprint
        self._lock = threading.Lock()
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            use_write_ahead_log(self._db)
            self._db.execute("PRAGMA cache_size=-512")  # KiB; rows are read once, and the system caches the file
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT OR IGNORE INTO scopes (fingerprint) VALUES (?)", (fingerprint,))
            row = self._db.execute("SELECT id FROM scopes WHERE fingerprint = ?", (fingerprint,)).fetchone()
            self._scope = int(row[0])

    def in_scope(self, fingerprint: str) -> ReleaseStore:
        """The same file under another fingerprint; to be closed by itself."""
        return ReleaseStore(self._path, fingerprint, self._max_bytes)

    def get_many(self, keys: Sequence[RecordKey]) -> dict[RecordKey, EncodedRelease]:
        """The stored releases among `keys`; those that are missing here must be drawn and `put_many`."""
        with self._lock, self._translated():
            return self._read(keys)

    def put_many(self, items: Mapping[RecordKey, EncodedRelease]) -> dict[RecordKey, EncodedRelease]:
        """Commit new releases in one transaction and return what MUST be sent for each key.

        The first release of a record wins: if another process stored one meanwhile, that one comes back and the
        new draw is thrown away. When this returns, the bytes are on disk. All or nothing.
        """
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._insert(items)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            return self._read(list(items))

    def held(self, keys: Sequence[RecordKey]) -> dict[RecordKey, tuple[int, int]]:
        """Rows and bytes of the stored releases among `keys`, without reading the releases themselves."""
        by_packed = {key.packed(): key for key in keys}
        found: dict[RecordKey, tuple[int, int]] = {}
        with self._lock, self._translated():
            for packed in _batches(list(by_packed)):
                marks = ",".join("?" * len(packed))
                query = f"SELECT record, rows, length(data) FROM releases WHERE scope = ? AND record IN ({marks})"
                for record, rows, size in self._db.execute(query, (self._scope, *packed)):
                    found[by_packed[record]] = (rows, size)
        return found

    @property
    def identity(self) -> str:
        """A random name of this file's contents: a file that was deleted and made anew has another."""
        with self._lock, self._translated():
            return str(self._db.execute("SELECT id FROM identity").fetchone()[0])

    def renew_identity(self) -> None:
        """Say that releases were lost (an older copy was put back): what is drawn now may be a second draw."""
        with self._lock, self._translated():
            self._db.execute("UPDATE identity SET id = lower(hex(randomblob(16)))")

    @property
    def size(self) -> int:
        """Records stored under this fingerprint."""
        with self._lock, self._translated():
            row = self._db.execute("SELECT COUNT(*) FROM releases WHERE scope = ?", (self._scope,)).fetchone()
            return int(row[0])

    @property
    def stored_bytes(self) -> int:
        """Encoded bytes in the whole file, under any fingerprint: what `max_bytes` bounds."""
        with self._lock, self._translated():
            return self._total()

    def close(self) -> None:
        """Close the file. Everything that was put is on disk already."""
        with self._lock:
            self._db.close()

    def _total(self) -> int:
        return int(self._db.execute("SELECT bytes FROM totals").fetchone()[0])

    def _insert(self, items: Mapping[RecordKey, EncodedRelease]) -> None:
        added = 0
        for key, item in items.items():
            cursor = self._db.execute(
                "INSERT OR IGNORE INTO releases VALUES (?, ?, ?, ?, ?)",
                (self._scope, key.packed(), item.rows, zlib.crc32(item.data), item.data),
            )
            added += len(item.data) if cursor.rowcount == 1 else 0
        total = self._total() + added
        if total > self._max_bytes:
            raise StorageFull(
                f"the store of {self._holds} would hold {total / 1e6:.1f} MB, over its bound of "
                f"{self._max_bytes / 1e6:.1f} MB. Raise the bound, or delete {self._path.name} if no job needs it any "
                f"more (which {self._if_deleted})"
            )
        self._db.execute("UPDATE totals SET bytes = ?", (total,))

    def _read(self, keys: Sequence[RecordKey]) -> dict[RecordKey, EncodedRelease]:
        by_packed = {key.packed(): key for key in keys}
        found: dict[RecordKey, EncodedRelease] = {}
        for packed in _batches(list(by_packed)):
            marks = ",".join("?" * len(packed))
            query = f"SELECT record, rows, crc, data FROM releases WHERE scope = ? AND record IN ({marks})"
            for record, rows, crc, data in self._db.execute(query, (self._scope, *packed)):
                if zlib.crc32(data) != crc:
                    raise ArtifactCorrupt(
                        f"the store of {self._holds} {self._path.name} is damaged (checksum). Restore it from a "
                        f"backup, or delete it, which {self._if_deleted}"
                    )
                found[by_packed[record]] = EncodedRelease(rows, data)
        return found

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as rows of our table."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise JobConflict(
                    f"another process keeps the store of {self._holds} {self._path.name} locked; end it and try again",
                    detail=text,
                ) from error
            raise StorageFull(
                f"the store of {self._holds} {self._path.name} can't be written ({text}). Free room on the disk or "
                "choose another folder; nothing was sent that is not stored",
                detail=text,
            ) from error
        except sqlite3.DatabaseError as error:
            raise ArtifactCorrupt(
                f"the store of {self._holds} {self._path.name} is damaged or not one of ours. Restore it from a "
                f"backup, or delete it, which {self._if_deleted}",
                detail=str(error),
            ) from error
        except OSError as error:
            raise StorageFull(
                f"the store of {self._holds} {self._path.name} can't be made ({error.strerror}). Free room on the disk "
                "or choose another folder",
                detail=str(error),
            ) from error


def _batches(items: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
