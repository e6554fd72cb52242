"""What both sides ask of SQLite beyond its defaults, and its errors as rows of the error table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from privtune.shared.errors import ArtifactCorrupt, JobConflict, StorageFull

LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def use_write_ahead_log(connection: sqlite3.Connection, timeout_s: float = 30.0) -> None:
    """Make the file keep a write-ahead log, waiting for whoever else is opening or closing it.

    The change of mode needs the file for itself and, unlike a write, fails at once when two processes want it
    together, whatever the busy timeout. Raises sqlite3.OperationalError when it stays locked for timeout_s.
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
        if_damaged: the remedy for a damaged file.

    Raises:
        JobConflict: another process keeps the file locked.
        StorageFull: it can't be written or made.
        ArtifactCorrupt: it is damaged, or not one of ours.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        if _locked(error):
            raise JobConflict(
                f"another process keeps {what} locked; end it and try again", detail=str(error)
            ) from error
        raise StorageFull(
            f"{what} can't be written ({error}), so nothing was sent. Free room on the disk or set --home to a folder "
            "that can",
            detail=str(error),
        ) from error
    except sqlite3.DatabaseError as error:
        raise ArtifactCorrupt(
            f"{what} is damaged or not one of ours ({error}). {if_damaged}", detail=str(error)
        ) from error
    except OSError as error:
        raise StorageFull(
            f"{what} can't be made: {error.strerror}. Free room on the disk or set --home to a folder that can",
            detail=str(error),
        ) from error


def _locked(error: BaseException) -> bool:
    # The low byte is the primary code; errors that Python itself raises carry none.
    return isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in LOCKED
