"""What both sides ask of SQLite beyond its defaults."""

from __future__ import annotations

import sqlite3
import time


def use_write_ahead_log(connection: sqlite3.Connection, timeout_s: float = 30.0) -> None:
    """Make the file keep a write-ahead log, waiting for whoever else is opening or closing it.

    The change of mode needs the file for itself and, unlike a write, fails at once when two processes want it
    together, whatever the busy timeout. Raises sqlite3.OperationalError when it stays locked for timeout_s.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
