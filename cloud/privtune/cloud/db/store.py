"""The control plane's database: API keys, jobs, events and names of artifacts; never tensors, text or labels.

SQLite (WAL) by default, PostgreSQL by URL. Every write is one short transaction that takes its lock first, so that no
other thread or process acts between a check and the change that relies on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from privtune.shared.errors import (
    CloudUnreachable,
    InternalError,
    InvalidInput,
    PrivTuneError,
    StorageFull,
    VersionMismatch,
)
from privtune.shared.files import make_folder
from privtune.shared.sqlite import use_write_ahead_log

_SQLITE = "cloud.sqlite"  # in a data folder
_BUSY_TIMEOUT_MS = 10_000
_WRITE = "privtune_write"
_DISK_TROUBLE = re.compile(r"disk is full|readonly database|unable to open|disk I/O|no space left", re.IGNORECASE)

# Every constraint is named, so that migrations can alter it on SQLite and PostgreSQL alike.
_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
_Counter = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Declarative base. Times are whole seconds since 1970, UTC."""

    metadata = MetaData(naming_convention=_NAMING)


class ApiKeyRow(Base):
    """An API key: only the SHA-256 of the secret is kept.

    scopes: separated by spaces.
    replaced_by: the key that it was rotated to.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    label: Mapped[str] = mapped_column(String(128))
    display: Mapped[str] = mapped_column(String(16))
    scopes: Mapped[str] = mapped_column(String(64))
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    replaced_by: Mapped[str | None] = mapped_column(String(40))


class OwnerRow(Base):
    """An owner with limits of its own: fields of `privtune.cloud.settings.Limits`."""

    __tablename__ = "owners"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    limits: Mapped[dict[str, Any]] = mapped_column(JSON)


class JobRow(Base):
    """A fine-tuning job. `number` orders listings; `id` is public."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_owner_status_number", "owner", "status", "number"),)

    number: Mapped[int] = mapped_column(_Counter, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    phase: Mapped[str] = mapped_column(String(32))
    reason: Mapped[str] = mapped_column(Text)
    requested: Mapped[str | None] = mapped_column(String(8))
    held: Mapped[bool]
    spec: Mapped[str] = mapped_column(Text)
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    session_epoch: Mapped[int] = mapped_column(BigInteger)
    event_count: Mapped[int] = mapped_column(BigInteger)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON)
    tokens: Mapped[int | None] = mapped_column(BigInteger)
    adapter_sha256: Mapped[str | None] = mapped_column(String(64))
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)


class EventRow(Base):
    """An event of a job, numbered from 1 per job."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    level: Mapped[str] = mapped_column(String(8))
    kind: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(BigInteger)


class CheckpointRow(Base):
    """A checkpoint among the job's artifacts."""

    __tablename__ = "checkpoints"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[int] = mapped_column(BigInteger)


class LeaseRow(Base):
    """Which device holds a job.

    holder: the device's name in this job.
    token: epoch of the session that may write; it grows with every claim.
    until: when the lease runs out.
    """

    __tablename__ = "leases"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    holder: Mapped[str] = mapped_column(String(32))
    token: Mapped[int] = mapped_column(BigInteger)
    until: Mapped[int] = mapped_column(BigInteger)


class IdempotencyRow(Base):
    """The job that a client's Idempotency-Key created, so that a repeated request creates no second one."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (UniqueConstraint("owner", "key"),)

    number: Mapped[int] = mapped_column(_Counter, primary_key=True, autoincrement=True)
    owner: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(255))
    request_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[int] = mapped_column(BigInteger, index=True)


class DeletionRow(Base):
    """A job that is deleted: its rows are gone, its files once `finished_at` is set.

    receipt: what went; None where nobody asked for the deletion, and the row goes with the files.
    """

    __tablename__ = "deletions"
    __table_args__ = (Index("ix_deletions_owner_number", "owner", "number"),)

    number: Mapped[int] = mapped_column(_Counter, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(String(40), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    receipt: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    finished_at: Mapped[int | None] = mapped_column(BigInteger, index=True)


class HomeRow(Base):
    """How often a device's home has claimed to be the newest copy, and by which nonce it did so last."""

    __tablename__ = "homes"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    home_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    nonce: Mapped[str] = mapped_column(String(32))


class TeachingRow(Base):
    """A teaching. `number` orders listings and the queue; `result` names its folder once that is known.

    model_files, corpus_files: name the files that a succeeded one was made from.
    """

    __tablename__ = "teachings"
    __table_args__ = (Index("ix_teachings_owner_number", "owner", "number"),)

    number: Mapped[int] = mapped_column(_Counter, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16), index=True)
    cancelling: Mapped[bool]
    reason: Mapped[str] = mapped_column(Text)
    spec: Mapped[str] = mapped_column(Text)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON)
    result: Mapped[str | None] = mapped_column(String(64))
    model_files: Mapped[str | None] = mapped_column(String(64))
    corpus_files: Mapped[str | None] = mapped_column(String(64))
    card: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error_code: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)


class Store:
    """Engine and transactions. Thread-safe; see `open_store`.

    Raises InvalidInput for a URL that can't be used and StorageFull where the disk refuses.
    """

    def __init__(self, url: str) -> None:
        self.engine = _make_engine(url)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read-only transaction."""
        with _translated(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that holds the write lock from its start and commits at its end."""
        with _translated(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            session.connection(execution_options={_WRITE: True})
            yield session

    def upgrade(self) -> None:
        """Upgrade the schema to this version's. Raises VersionMismatch for a newer one."""
        from alembic import command
        from alembic.util import CommandError

        config = migration_config()
        with (
            _translated(),
            self.engine.connect().execution_options(**{_WRITE: True}) as connection,
            connection.begin(),
        ):
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise VersionMismatch(
                    "The database was written by a newer privtune-cloud. Upgrade this one or use another --data.",
                    detail=str(error),
                ) from error

    def revision(self) -> str | None:
        """The schema's revision; None for an empty database."""
        from alembic.runtime.migration import MigrationContext

        with _translated(), self.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def ping(self) -> None:
        """Raises unless the database answers."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


@contextmanager
def open_store(data_folder: Path, url: str | None, *, new: bool = True) -> Iterator[Store]:
    """The database at `url`, or SQLite in the data folder, at this version's schema; closed at the end.

    new: make it where there is none. Otherwise that raises InvalidInput, unless the folder is there and empty, as
    before the first start.
    """
    if not (new or url or begun(data_folder)) and (not data_folder.is_dir() or any(data_folder.iterdir())):
        raise InvalidInput(
            f"There is no cloud in {data_folder.absolute()}: give the folder that `privtune-cloud serve` uses (--data, "
            "or PRIVTUNE_CLOUD_DATA).",
            param="data",
        )
    store = Store(url or sqlite_url(data_folder / _SQLITE))
    try:
        store.upgrade()
        yield store
    finally:
        store.close()


def begun(data_folder: Path) -> bool:
    """Whether a cloud keeps its database in this folder."""
    return (data_folder / _SQLITE).exists()


def migration_config() -> Any:
    """Alembic's configuration for the migrations in this package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def sqlite_url(path: Path) -> str:
    """The URL of a database file; creates its folder. Raises StorageFull."""
    try:
        make_folder(path.parent)
    except OSError as error:
        raise StorageFull(f"Can't create the folder {path.parent}: {error.strerror}.") from error
    return f"sqlite:///{path}"


def _make_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and not parsed.database:
            raise InvalidInput("--database-url must name a file: sqlite:////absolute/path.sqlite")
        engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except (ArgumentError, NoSuchModuleError) as error:
        raise InvalidInput(
            "--database-url is not a database URL such as sqlite:////path/cloud.sqlite or postgresql+psycopg://…",
            detail=str(error),
        ) from error
    except ModuleNotFoundError as error:
        raise InvalidInput(f"--database-url needs the package {error.name!r}: pip install {error.name}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


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


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PrivTuneError:
        raise
    except OperationalError as error:
        detail = str(error.orig)
        if _DISK_TROUBLE.search(detail):
            raise StorageFull(
                "The cloud's database can't be written: disk full or read-only.", detail=detail
            ) from error
        if "no such table" in detail:
            raise InternalError("No tables yet: run `privtune-cloud db upgrade`.", detail=detail) from error
        raise CloudUnreachable("The cloud's database does not answer. Try again.", detail=detail) from error
    except DBAPIError as error:
        raise InternalError("The cloud's database refused a change.", detail=str(error.orig)) from error
