"""The once-per-record store: a record's release is drawn once, stored here, and the same bytes are sent from then on.

Fresh noise in every epoch would let the cloud average it away. So the bytes are on disk BEFORE they may be sent, and
what is on disk wins over any later draw: after a crash, a retry, a resume, or in a second process.

One SQLite file per device (write-ahead log, synchronous FULL). It holds what the cloud has or will get, and hashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from privtune.device.release.draw_store import DrawStore
from privtune.device.release.record_keys import RecordKey
from privtune.shared.errors import ArtifactCorrupt, InvalidInput, JobConflict, StorageFull
from privtune.shared.wire import Message
from privtune.shared.wording import counted

_SCHEMA = """
CREATE TABLE IF NOT EXISTS scopes (
    id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, law TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS releases (
    scope INTEGER NOT NULL, record BLOB NOT NULL, rows INTEGER NOT NULL, own_rows REAL, fisher REAL,
    crc INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (scope, record)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (only INTEGER PRIMARY KEY CHECK (only = 0), bytes INTEGER NOT NULL);
INSERT OR IGNORE INTO totals VALUES (0, 0);
"""
_TABLE = RecordKey(0, b"")
_BATCH = 500  # keys per query; SQLite allows 32,766 variables


@dataclass(frozen=True)
class EncodedRelease:
    """What goes on the wire for one record: `rows` vectors or ids, encoded.

    own_rows: the worst rows that they amount to (`Mechanism.own_rows`); never sent.
    fisher: their Fisher information (`Release.fisher_B`); never sent.
    """

    rows: int
    data: bytes
    own_rows: float | None = None
    fisher: float | None = None


class Stored(NamedTuple):
    """Of a stored release: its vectors, its bytes, and what the device keeps of it beside (`EncodedRelease`).

    No bytes: it was deleted, and is marked as drawn.
    """

    rows: int
    bytes: int
    own_rows: float | None
    fisher: float | None


def deleted_releases(records: int) -> JobConflict:
    """The error for texts that were released under this noise, and whose releases were deleted since."""
    return JobConflict(
        f"{counted(records, 'text')} of it left under this noise before, and what left was deleted here "
        "(`privtune jobs delete --releases`). Under this noise they are never drawn again, as the cloud could average "
        "both draws: leave them out, or use other noise (--another-noise)",
        private=True,
    )


def release_fingerprint(*, mechanism: str, model: str, cut: int, codec: str) -> str:
    """Fingerprint of everything besides the record that decides the bytes of its release."""
    return hashlib.sha256("\0".join((mechanism, model, str(cut), codec)).encode()).hexdigest()


class ReleaseStore(DrawStore):
    """Releases under one fingerprint, in a file that other fingerprints share.

    Nothing is ever evicted: a release that is lost would be drawn again, and the two draws could be averaged.

    Args:
        path: the file, created if missing.
        fingerprint: `release_fingerprint(...)`.
        max_bytes: bound on the encoded bytes in the whole file.
        law: the `release_fingerprint(...)` that a further scope belongs to, see `in_scope`.

    Raises, in every call, as `DrawStore`; StorageFull also over the bound.
    """

    # A subclass that stores something else says so in its messages.
    contents = "releases"
    if_deleted = "releases its records a second time"

    def __init__(self, path: Path, fingerprint: str, max_bytes: int, law: str | None = None) -> None:
        if max_bytes < 1:
            raise InvalidInput(f"the bound of the store of {self.contents} must be at least 1 byte", param="max_bytes")
        self._max_bytes, self.fingerprint, self._law = max_bytes, fingerprint, law or fingerprint
        remedy = f"Restore it from a backup, or delete it, which {self.if_deleted}"
        super().__init__(path, _SCHEMA, f"the store of {self.contents}", if_damaged=remedy, write_ahead_log=True)
        with self._using() as db:
            db.execute("PRAGMA cache_size=-512")  # KiB; rows are read once, and the system caches the file
            db.execute("INSERT OR IGNORE INTO scopes (fingerprint, law) VALUES (?, ?)", (fingerprint, self._law))
            row = db.execute("SELECT id FROM scopes WHERE fingerprint = ?", (fingerprint,)).fetchone()
            self._scope = int(row[0])

    def in_scope(self, kind: str) -> ReleaseStore:
        """Something else that is kept under the same law, in the same file; the caller closes it."""
        fingerprint = hashlib.sha256(f"{kind}\0{self._law}".encode()).hexdigest()
        return ReleaseStore(self.path, fingerprint, self._max_bytes, self._law)

    def other_laws(self, key: RecordKey) -> int:
        """Under how many other laws this content was drawn, as a record or as the beginning of one."""
        query = "SELECT COUNT(DISTINCT law) FROM scopes JOIN releases ON scope = id WHERE record = ? AND law != ?"
        with self._using() as db:
            return int(db.execute(query, (RecordKey(0, key.content).packed(), self._law)).fetchone()[0])

    def get_many(self, keys: Sequence[RecordKey]) -> dict[RecordKey, EncodedRelease]:
        """The stored releases among `keys`; draw those that are missing here and `put_many` them.

        Raises JobConflict for one that was deleted.
        """
        with self._using() as db:
            return self._read(db, keys)

    def put_many(self, items: Mapping[RecordKey, EncodedRelease]) -> dict[RecordKey, EncodedRelease]:
        """Commit new releases in one transaction and return what MUST be sent for each key.

        The first release of a record wins: if another process has stored one meanwhile, that one is returned and the
        new draw is discarded. On return the bytes are on disk. All or nothing.
        """
        with self._transaction() as db:
            self._insert(db, items)
        return self.get_many(list(items))

    def keep_table(self, table: Message) -> None:
        """Store the table that the ids of these releases stand for; the law names it, so there is one."""
        with contextlib.closing(self.in_scope("table")) as kept:
            kept.put_many({_TABLE: EncodedRelease(table.rows, bytes(table.payload))})

    def table(self) -> bytes:
        """The stored table as it was sent; empty if these releases are vectors."""
        with contextlib.closing(self.in_scope("table")) as kept:
            return b"".join(item.data for item in kept.get_many([_TABLE]).values())

    def sizes(self, keys: Sequence[RecordKey]) -> dict[RecordKey, Stored]:
        """The stored releases among `keys`, without reading the releases themselves."""
        with self._using() as db:
            return {key: Stored(*row) for key, *row in self._select(db, keys, "rows, length(data), own_rows, fisher")}

    def delete(self, keys: Sequence[RecordKey], *, forget: bool) -> int:
        """Overwrite the bytes of stored releases; returns how many went.

        What is deleted stays marked as drawn and is never drawn again: `get_many` refuses it. With `forget` no mark
        stays, for releases without randomness, whose second draw is the first one.
        """
        change = "DELETE FROM releases" if forget else "UPDATE releases SET data = x'', crc = 0"
        found = self.sizes(keys)
        with self._using() as db:
            db.execute("PRAGMA secure_delete=ON")
        with self._transaction() as db:
            for key in found:
                db.execute(f"{change} WHERE scope = ? AND record = ?", (self._scope, key.packed()))
            freed = sum(stored.bytes for stored in found.values())
            db.execute("UPDATE totals SET bytes = bytes - ?", (freed,))
        with self._using() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log has the bytes as well
        return freed

    @property
    def size(self) -> int:
        """Number of records stored under this fingerprint."""
        with self._using() as db:
            return int(db.execute("SELECT COUNT(*) FROM releases WHERE scope = ?", (self._scope,)).fetchone()[0])

    def _insert(self, db: sqlite3.Connection, items: Mapping[RecordKey, EncodedRelease]) -> None:
        added = 0
        for key, item in items.items():
            cursor = db.execute(
                "INSERT OR IGNORE INTO releases VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self._scope, key.packed(), item.rows, item.own_rows, item.fisher, zlib.crc32(item.data), item.data),
            )
            added += len(item.data) if cursor.rowcount == 1 else 0
        total = int(db.execute("SELECT bytes FROM totals").fetchone()[0]) + added
        if total > self._max_bytes:
            raise StorageFull(
                f"the store of {self.contents} would hold {total / 1e6:.1f} MB, over its bound of "
                f"{self._max_bytes / 1e6:.1f} MB. Raise the bound, or delete {self.path.name} if no job needs it any "
                f"more (which {self.if_deleted})"
            )
        db.execute("UPDATE totals SET bytes = ?", (total,))

    def _read(self, db: sqlite3.Connection, keys: Sequence[RecordKey]) -> dict[RecordKey, EncodedRelease]:
        found: dict[RecordKey, EncodedRelease] = {}
        for key, rows, own_rows, fisher, crc, data in self._select(db, keys, "rows, own_rows, fisher, crc, data"):
            if not data:
                raise deleted_releases(1)
            if zlib.crc32(data) != crc:
                raise ArtifactCorrupt(f"{self._named} is damaged (checksum). {self._if_damaged}")
            found[key] = EncodedRelease(rows, data, own_rows, fisher)
        return found

    def _select(self, db: sqlite3.Connection, keys: Sequence[RecordKey], columns: str) -> Iterator[tuple[Any, ...]]:
        """The key and the named columns of each stored record among `keys`."""
        by_packed = {key.packed(): key for key in keys}
        packed = list(by_packed)
        for start in range(0, len(packed), _BATCH):
            some = packed[start : start + _BATCH]
            marks = ",".join("?" * len(some))
            query = f"SELECT record, {columns} FROM releases WHERE scope = ? AND record IN ({marks})"
            for record, *values in db.execute(query, (self._scope, *some)):
                yield by_packed[record], *values
