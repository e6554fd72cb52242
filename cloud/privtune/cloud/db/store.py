"""The control plane's database: API keys, jobs, events and names of artifacts; never tensors, text or labels.

SQLite (WAL) by default, PostgreSQL by URL; `privtune.cloud.db.database` says what both promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from privtune.cloud.db.database import WRITING, make_engine, place, reading, sqlite_url
from privtune.cloud.db.failures import translated
from privtune.shared.errors import CloudUnreachable, InvalidInput, VersionMismatch


class Store:
    """Engine and transactions. Thread-safe; see `open_store`.

    Raises InvalidInput for a URL that can't be used and StorageFull where the disk refuses.
    """

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads, and sees one state of the database."""
        with translated(), Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options=reading(self.engine))
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that holds the write lock from its start and commits at its end."""
        with translated(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            session.connection(execution_options=WRITING)
            yield session

    def upgrade(self) -> None:
        """Upgrade the schema to this version's. Raises VersionMismatch for a newer one."""
        from alembic import command
        from alembic.util import CommandError

        config = migration_config()
        with (
            translated(),
            self.engine.connect().execution_options(**WRITING) as connection,
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

        with translated(), self.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def reach(self) -> None:
        """Connect, for an operator to read why that fails. Raises CloudUnreachable or InvalidInput."""
        try:
            self.engine.connect().close()
        except DBAPIError as error:
            if self.engine.dialect.name == "sqlite":
                return  # whatever opens it next says what is wrong with the file
            why = " ".join(str(error.orig).split())
            kind = CloudUnreachable if isinstance(error, OperationalError) else InvalidInput
            raise kind(f"Can't connect to the database {place(self.engine)}: {why}") from error

    def ping(self) -> None:
        """Raises unless the database answers."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


@contextmanager
def open_store(data_folder: Path, url: str | None) -> Iterator[Store]:
    """The database at `url`, or SQLite in the data folder, at this version's schema; closed at the end.

    Raises as `Store`, `Store.reach` and `Store.upgrade`.
    """
    store = Store(url or sqlite_url(data_folder / "cloud.sqlite"))
    try:
        store.reach()
        store.upgrade()
        yield store
    finally:
        store.close()


def migration_config() -> Any:
    """Alembic's configuration for the migrations in this package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
