"""Engines: SQLite in the data folder, or PostgreSQL by URL, set up so that both keep the same promise.

A write transaction has the database to itself from its first statement on: SQLite's write lock, or an advisory lock of
PostgreSQL. So no other thread or process acts between a check and the change that relies on it, whatever rows the two
are about. Writes are short and few: heartbeats, tensors and files never go through the database. A read transaction
sees one state of the database and waits for nobody.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from privtune.shared.errors import InvalidInput, StorageFull
from privtune.shared.files import make_folder
from privtune.shared.sqlite import use_write_ahead_log
from privtune.shared.wording import install

_BUSY_TIMEOUT_MS = 10_000
_WRITE = "privtune_write"
WRITING = {_WRITE: True}  # execution options of a transaction that writes
_READING = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

_LOCK = int.from_bytes(b"privtune")
_IDLE_S = 30  # a server takes the lock back from a client that hangs, or whose machine is gone, after this time
# Where the network swallows everything, a call fails within half a minute, not after hours.
_PATIENCE = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "application_name": "privtune-cloud",
}


def make_engine(url: str) -> Engine:
    """The engine of a database URL. Raises InvalidInput for one that can't be used."""
    parsed = parse(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and not parsed.database:
        raise InvalidInput("--database-url must name a file: sqlite:////absolute/path.sqlite")
    if not sqlite:
        parsed = parsed.update_query_dict({**_PATIENCE, **parsed.query})
    try:
        engine = create_engine(parsed) if sqlite else create_engine(parsed, pool_pre_ping=True, **_SETTLED)
    except NoSuchModuleError as error:
        raise _unusable(error) from error
    except ModuleNotFoundError as error:
        raise InvalidInput(f"PostgreSQL needs the package psycopg: {install('postgres')}", detail=str(error)) from error
    event.listen(engine, "connect", _prepare_sqlite if sqlite else _prepare_postgres)
    event.listen(engine, "begin", _begin_sqlite if sqlite else _begin_postgres)
    return engine


# Not what the server's or the database's settings say: a later statement must see what was committed before the lock.
_SETTLED: dict[str, Any] = {"isolation_level": "READ COMMITTED"}


def parse(url: str) -> URL:
    """A database URL's parts. Raises InvalidInput, which never repeats the URL: it may hold a password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise _unusable(error) from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise _unusable(None)
    return parsed


def holds_password(url: str) -> bool:
    """Whether a URL names a password."""
    parsed = parse(url)
    return bool(parsed.password) or any("password" in name for name in parsed.query)


def place(engine: Engine) -> str:
    """A database's name for people, without a password."""
    url = engine.url
    if engine.dialect.name == "sqlite":
        return str(url.database)
    user = f"{url.username}@" if url.username else ""
    return f"{user}{url.host or url.query.get('host') or 'localhost'}:{url.port or 5432}/{url.database or ''}"


def reading(engine: Engine) -> dict[str, Any]:
    """Execution options of a transaction that only reads."""
    return {} if engine.dialect.name == "sqlite" else _READING


def sqlite_url(path: Path) -> str:
    """The URL of a database file; creates its folder. Raises StorageFull."""
    try:
        make_folder(path.parent)
    except OSError as error:
        raise StorageFull(f"Can't create the folder {path.parent}: {error.strerror}.") from error
    return f"sqlite:///{path}"


def _unusable(error: Exception | None) -> InvalidInput:
    kind = "" if error is None else type(error).__name__
    return InvalidInput(
        "--database-url is not a database URL such as sqlite:////path/cloud.sqlite or "
        "postgresql://USER@HOST/NAME; in a password write @ / : # as %40 %2F %3A %23.",
        detail=kind,
    )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins, not the driver, which would begin late
    use_write_ahead_log(connection, _BUSY_TIMEOUT_MS / 1000)
    cursor = connection.cursor()
    # secure_delete: rows of a deleted job are overwritten, not only unlinked.
    for pragma in ("synchronous=FULL", f"busy_timeout={_BUSY_TIMEOUT_MS}", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads and then writes fails at once if another one wrote in between, whatever the
    # busy timeout. Taking the write lock first makes it wait instead.
    writing = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _prepare_postgres(connection: Any, _record: Any) -> None:
    for setting in (
        f"lock_timeout = {_BUSY_TIMEOUT_MS}",
        f"idle_in_transaction_session_timeout = {_IDLE_S * 1000}",
        "synchronous_commit = on",
    ):
        connection.execute(f"SET {setting}")
    connection.commit()


def _begin_postgres(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITE, False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
