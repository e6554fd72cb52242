import sqlite3
import threading
from pathlib import Path

import pytest

from privtune.shared.sqlite import use_write_ahead_log


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    """The bare PRAGMA fails here in about one round of twenty."""
    errors: list[Exception] = []

    def open_and_close(path: Path, start: threading.Barrier) -> None:
        start.wait()
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            use_write_ahead_log(connection)
            connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
        except sqlite3.Error as error:
            errors.append(error)
        finally:
            connection.close()

    for round_ in range(40):
        start = threading.Barrier(6)
        threads = [threading.Thread(target=open_and_close, args=(tmp_path / str(round_), start)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_what_stays_locked_is_an_error_after_the_timeout(tmp_path: Path) -> None:
    holder = sqlite3.connect(tmp_path / "f", isolation_level=None)
    holder.execute("CREATE TABLE t (x)")
    holder.execute("BEGIN EXCLUSIVE")
    connection = sqlite3.connect(tmp_path / "f", timeout=0.01)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        use_write_ahead_log(connection, timeout_s=0.1)
    holder.execute("ROLLBACK")
    use_write_ahead_log(connection, timeout_s=0.1)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    holder.close()


def test_other_errors_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"not a database " * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        use_write_ahead_log(sqlite3.connect(tmp_path / "f"), timeout_s=60)
