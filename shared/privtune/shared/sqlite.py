"""SQLite as PrivTune uses it: private files that reach the disk, whole transactions, errors of the one table."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from privtune.shared.errors import ArtifactCorrupt, JobConflict, StorageFull

LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
TIMEOUT_S = 30.0  # how long a statement waits for another process


def open_private(path: Path, schema: str, *, write_ahead_log: bool = False) -> sqlite3.Connection:
    """Open a file that only its owner can read, and create what is missing: its folder, the file, the schema.

    Commits are flushed to disk (`synchronous=FULL`). Transactions are explicit, see `transaction`; threads may share
    the connection under a lock of their own. Raises OSError and sqlite3.Error, see `sqlite_errors`.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        if write_ahead_log:
            use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(schema)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit everything or nothing; no other process writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def use_write_ahead_log(connection: sqlite3.Connection, timeout_s: float = TIMEOUT_S) -> None:
    """Switch the file to a write-ahead log, waiting for other processes that open or close it.

    The switch needs the file for itself and, unlike a write, fails at once when two processes try it together,
    whatever the busy timeout. Raises sqlite3.OperationalError when the file stays locked for `timeout_s` seconds.
    """
    waiting = Retrying(
        retry=retry_if_exception(_locked), stop=stop_after_delay(timeout_s), wait=wait_fixed(0.02), reraise=True
    )
    waiting(connection.execute, "PRAGMA journal_mode=WAL")


@contextmanager
def sqlite_errors(what: str, *, if_damaged: str = "Restore it from a backup") -> Iterator[None]:
    """Raise SQLite's errors as rows of the error table.

    Args:
        what: the file as its owner knows it, like `the store of releases /home/x/releases.sqlite`.
        if_damaged: the remedy for a damaged file, without a full stop.

    Raises:
        JobConflict: another process keeps the file locked.
        StorageFull: the file can't be written or created.
        ArtifactCorrupt: the file is damaged, or not one of ours.
    """
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a defect of ours, like a closed connection; the file is sound
    except sqlite3.OperationalError as error:
        if _locked(error):
            raise JobConflict(
                f"another process keeps {what} locked; end it and try again", detail=str(error)
            ) from error
        raise StorageFull(
            f"{what} can't be written ({error}), and nothing was sent that is not stored. Free room on the disk or "
            "choose another folder",
            detail=str(error),
        ) from error
    except sqlite3.DatabaseError as error:
        raise ArtifactCorrupt(
            f"{what} is damaged or not one of ours ({error}). {if_damaged}", detail=str(error)
        ) from error
    except OSError as error:
        raise StorageFull(
            f"{what} can't be created: {error.strerror}. Free room on the disk or choose another folder",
            detail=str(error),
        ) from error


def _locked(error: BaseException) -> bool:
    # The low byte is the primary code; errors that Python itself raises carry none.
    return isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in LOCKED
