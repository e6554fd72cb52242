"""SQLite as PrivTune uses it: private files, one connection to each, whole transactions, errors of the one table."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from privtune.shared.at_rest import vault_of
from privtune.shared.errors import ArtifactCorrupt, JobConflict, StorageFull
from privtune.shared.files import held, make_folder

LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
TIMEOUT_S = 30.0  # how long a statement waits for another process


class Database:
    """A private SQLite file, open: every Database of one file in this process uses one connection, a thread at a time.

    POSIX drops all of a process's locks on a file as soon as the process closes ANY descriptor of it. Another process
    then takes the file for unused and deletes its write-ahead log. So nothing here opens a file that exists except
    SQLite, once.
    """

    def __init__(self, file: _OpenFile) -> None:
        self._file: _OpenFile | None = file

    @contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone until the end. Raises sqlite3.ProgrammingError once closed."""
        file = self._file
        if file is None:
            raise sqlite3.ProgrammingError("the database is closed")
        with file.lock:
            yield file.connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection; commit everything or nothing. Meanwhile no other thread or process writes."""
        with self.using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def close(self) -> None:
        """Give the connection back; the last user's call closes the file. Closing twice does nothing."""
        with _opening:
            file, self._file = self._file, None
            if file is None:
                return
            file.users -= 1
            if file.users:
                return
            del _open_files[file.inode]
        with file.lock:
            file.connection.close()


@dataclass(kw_only=True)
class _OpenFile:
    """The one connection of this process to a file, and how many use it."""

    inode: tuple[int, int]
    connection: sqlite3.Connection
    lock: threading.RLock = field(default_factory=threading.RLock)
    users: int = 0


_open_files: dict[tuple[int, int], _OpenFile] = {}  # by device and inode: a path can come to name another file
_opening = threading.Lock()


def open_private(path: Path, schema: str, *, write_ahead_log: bool = False) -> Database:
    """Open a file that only its owner can read, and create what is missing: its folder, the file, the schema.

    Commits are flushed to disk, and so is the removal of a rollback journal, without which a commit that has returned
    could be rolled back after a loss of power (`synchronous=EXTRA`).

    Raises OSError and sqlite3.Error, see `sqlite_errors`.
    """
    path = Path(os.path.realpath(path))
    make_folder(path.parent, 0o700)
    with _opening:
        # Exclusive: closing a file that this process has open already would drop its locks.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        found = os.stat(path)
        inode = (found.st_dev, found.st_ino)
        file = _open_files.get(inode)
        if file is None:
            file = _open_files[inode] = _OpenFile(inode=inode, connection=_connect(path, schema, write_ahead_log))
        file.users += 1
    return Database(file)


def _connect(path: Path, schema: str, write_ahead_log: bool) -> sqlite3.Connection:
    connection = connect(path)
    try:
        if write_ahead_log:
            use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=EXTRA")
        connection.executescript(schema)
    except BaseException as error:
        connection.close()
        if _locked(error):
            _check_locks(path.parent)
        raise
    return connection


def connect(path: Path, *, timeout_s: float | None = None, copy_of: Path | None = None) -> sqlite3.Connection:
    """A connection for any thread, without transactions that SQLite begins by itself; encrypted where the file is.

    timeout_s: how long a statement waits for another process; None: TIMEOUT_S.
    copy_of: the file that this one is a copy of, with its key. Raises as `sqlite3.connect`, HomeLocked.
    """
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    vault = vault_of(copy_of or path)
    if vault is not None:
        return vault.connect(path, timeout_s, named=copy_of)
    return sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)


def copy_database(source: Path, target: Path) -> None:
    """Copy a database that others may use, as whole as it is at one moment. Raises OSError, sqlite3.Error."""
    target.unlink(missing_ok=True)
    with _one_family(), closing(connect(source)) as one, closing(connect(target, copy_of=source)) as other:
        one.backup(other)


@contextmanager
def _one_family() -> Iterator[None]:
    """Raise errors of SQLCipher, which has a module of its own with the same names, as those of sqlite3."""
    try:
        yield
    except Exception as error:
        kind = type(error)
        if not kind.__module__.startswith("sqlcipher3"):
            raise
        known = getattr(sqlite3, kind.__name__)(str(error))
        known.sqlite_errorcode = getattr(error, "sqlite_errorcode", 0)
        raise known from error


def _check_locks(folder: Path) -> None:
    """Raises OSError where the file system has no locks, which SQLite takes for another process that holds one."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch, held(Path(scratch) / "lock"):
        pass


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
        with _one_family():
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
    # The low byte is the primary code; errors that Python itself raises carry none. By name: SQLCipher has its own.
    return (
        type(error).__name__ == sqlite3.OperationalError.__name__
        and getattr(error, "sqlite_errorcode", 0) & 0xFF in LOCKED
    )
