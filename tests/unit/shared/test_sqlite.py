import contextlib
import errno
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from privtune.shared.errors import ArtifactCorrupt, JobConflict, StorageFull
from privtune.shared.sqlite import open_private, sqlite_errors, use_write_ahead_log


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


def test_a_transaction_is_whole_or_nothing(tmp_path: Path) -> None:
    with contextlib.closing(open_private(tmp_path / "deep" / "f", "CREATE TABLE t (x);")) as file:
        with file.transaction() as db:
            db.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.OperationalError, match="no such table"), file.transaction() as db:
            db.executemany("INSERT INTO t VALUES (?)", [(2,), (3,)]).execute("SELECT * FROM missing")
        with file.using() as db:
            assert db.execute("SELECT x FROM t").fetchall() == [(1,)]
            # EXTRA: a rollback journal whose removal is not flushed would take the commit back after a loss of power.
            assert db.execute("PRAGMA synchronous").fetchone() == (3,)
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "deep" / "f").stat().st_mode) == 0o600


def test_each_kind_of_error_is_a_row_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"not a database " * 100)
    damaged = sqlite_errors("the file", if_damaged="Delete it")
    with pytest.raises(ArtifactCorrupt, match=r"the file is damaged .* Delete it"), damaged:
        open_private(tmp_path / "text", "")
    with pytest.raises(StorageFull, match="the file can't be created: File exists"), sqlite_errors("the file"):
        open_private(tmp_path / "text" / "f", "")
    file = open_private(tmp_path / "f", "CREATE TABLE IF NOT EXISTS t (x);")
    other = sqlite3.connect(tmp_path / "f", timeout=0.01, isolation_level=None)
    with pytest.raises(JobConflict, match="locked"), file.transaction(), sqlite_errors("the file"):
        other.execute("BEGIN IMMEDIATE")
    other.execute("PRAGMA query_only=1")
    with pytest.raises(StorageFull, match="can't be written"), sqlite_errors("the file"):
        other.execute("INSERT INTO t VALUES (1)")
    other.close()
    file.close()


def test_a_file_system_without_locks_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite reports ENOLCK as busy."""
    monkeypatch.setattr("privtune.shared.sqlite.TIMEOUT_S", 0.01)
    other = sqlite3.connect(tmp_path / "f", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(JobConflict, match="locked"), sqlite_errors("the file"):
        open_private(tmp_path / "f", "CREATE TABLE t (x);")

    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", without_locks)
    with pytest.raises(StorageFull, match="its file system has no locks"), sqlite_errors("the file"):
        open_private(tmp_path / "f", "CREATE TABLE t (x);")
    other.close()
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_defect_of_ours_is_no_damage(tmp_path: Path) -> None:
    db = sqlite3.connect(":memory:")
    db.close()
    with pytest.raises(sqlite3.ProgrammingError), sqlite_errors("the file"):
        db.execute("SELECT 1")
    file = open_private(tmp_path / "f", "")
    file.close()
    file.close()
    with pytest.raises(sqlite3.ProgrammingError), sqlite_errors("the file"), file.using():
        pass


def elsewhere(path: Path, statement: str) -> int:
    """The exit code of a process that opens the file, runs the statement and closes it."""
    run = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1], 0); d.execute(sys.argv[2]).fetchall(); d.close()"
    return subprocess.run([sys.executable, "-c", run, path, statement], capture_output=True).returncode


@pytest.mark.parametrize("write_ahead_log", [True, False])
def test_opening_a_file_again_keeps_its_locks(tmp_path: Path, write_ahead_log: bool) -> None:
    path, schema = tmp_path / "f", "CREATE TABLE IF NOT EXISTS t (x);"
    with contextlib.closing(open_private(path, schema, write_ahead_log=write_ahead_log)) as file:
        with file.transaction() as db:
            db.execute("INSERT INTO t VALUES (1)")
            for _ in range(2):
                open_private(path, schema, write_ahead_log=write_ahead_log).close()
            assert elsewhere(path, "BEGIN IMMEDIATE") == 1  # still locked
        assert elsewhere(path, "SELECT COUNT(*) FROM t") == 0
        assert path.with_name("f-wal").exists() == write_ahead_log


def test_all_users_of_a_file_share_one_connection(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "f")
    one, two = open_private(tmp_path / "f", "CREATE TABLE t (x);"), open_private(tmp_path / "link", "")
    with one.using() as db, two.using() as same:
        assert db is same
    one.close()
    with two.using() as db:
        assert db.execute("SELECT COUNT(*) FROM t").fetchone() == (0,)
    (tmp_path / "f").unlink()
    with contextlib.closing(open_private(tmp_path / "f", "CREATE TABLE t (y);")) as new, new.using() as db:
        assert db.execute("SELECT y FROM t").fetchall() == []
    two.close()


def test_threads_that_open_write_and_close_lose_nothing(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for round_ in range(20):
            file = open_private(tmp_path / "f", "CREATE TABLE IF NOT EXISTS t (x);", write_ahead_log=True)
            with file.transaction() as db:
                db.execute("INSERT INTO t VALUES (?)", (100 * number + round_,))
            file.close()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    with contextlib.closing(sqlite3.connect(tmp_path / "f")) as db:
        assert db.execute("SELECT COUNT(DISTINCT x) FROM t").fetchone() == (120,)
