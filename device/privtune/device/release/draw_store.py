"""What files of draws have in common: they are private SQLite files whose contents have a name."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privtune.shared.sqlite import open_private, sqlite_errors

_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (only INTEGER PRIMARY KEY CHECK (only = 0), id TEXT NOT NULL);
INSERT OR IGNORE INTO identity VALUES (0, lower(hex(randomblob(16))));
"""


class DrawStore:
    """A file of draws (mode 0600, created if missing). Safe to use from several threads and processes.

    Args: see `open_private` and `sqlite_errors`; named: the kind of file, for messages.

    Raises, in every call:
        StorageFull: no room on the disk.
        JobConflict: another process keeps the file locked.
        ArtifactCorrupt: the file is damaged.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        named: str,
        *,
        if_damaged: str = "Restore it from a backup",
        write_ahead_log: bool = False,
    ) -> None:
        self.path, self._named, self._if_damaged = path, f"{named} {path}", if_damaged
        with sqlite_errors(self._named, if_damaged=if_damaged):
            self._file = open_private(path, schema + _SCHEMA, write_ahead_log=write_ahead_log)

    def close(self) -> None:
        """Close the file. Everything that was put is on disk already."""
        self._file.close()

    @property
    def identity(self) -> str:
        """A random name of this file's contents: a file that is deleted and created again has another."""
        with self._using() as db:
            return str(db.execute("SELECT id FROM identity").fetchone()[0])

    def renew_identity(self) -> None:
        """Record that draws were lost (an older copy was put back): what is drawn now may be a second draw."""
        with self._using() as db:
            db.execute("UPDATE identity SET id = lower(hex(randomblob(16)))")

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with sqlite_errors(self._named, if_damaged=self._if_damaged), self._file.using() as db:
            yield db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection; all or nothing, and nobody else writes meanwhile."""
        with sqlite_errors(self._named, if_damaged=self._if_damaged), self._file.transaction() as db:
            yield db
