import sqlite3
import sys
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from privtune.cloud.auth import ApiKeys
from privtune.cloud.db.database import sqlite_url
from privtune.cloud.db.store import Store, migration_config
from privtune.cloud.db.tables import ApiKeyRow, Base
from privtune.cloud.limits import OwnerLimits
from privtune.shared.errors import (
    CloudUnreachable,
    InternalError,
    InvalidInput,
    StorageFull,
    Unauthenticated,
    VersionMismatch,
)
from tests.support.databases import address


def test_head_of_the_migrations_is_what_the_models_say(store):
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_there_is_one_head_and_upgrading_twice_is_harmless(store):
    heads = ScriptDirectory.from_config(migration_config()).get_heads()
    assert [store.revision()] == heads
    store.upgrade()
    assert [store.revision()] == heads, "a second upgrade changes nothing"


def test_migrations_go_down_and_up_again(store):
    from alembic import command

    config = migration_config()
    with store.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert store.revision() is None
    store.upgrade()
    ApiKeys(store).create("alice")


def test_a_key_that_may_do_less_never_becomes_one_that_may_do_all(store):
    from alembic import command

    keys = ApiKeys(store)
    wide, narrow, short = keys.create("a"), keys.create("b", scopes=["read"]), keys.create("c", expires_in_s=1000)
    config = migration_config()
    with store.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
    store.upgrade()
    assert keys.authenticate(wide.secret, "device").scopes == ("read", "submit", "device")
    for made in (narrow, short):
        with pytest.raises(Unauthenticated, match="revoked"):
            keys.authenticate(made.secret, "read")


def test_a_newer_database_is_refused(store):
    with store.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(VersionMismatch, match="newer"):
        store.upgrade()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_many_processes_may_upgrade_at_once(tmp_path, request, kind):
    sqlite = sqlite_url(tmp_path / "cloud.sqlite")
    url = sqlite if kind == "sqlite" else request.getfixturevalue("postgres").new(empty=True)
    errors = []

    def upgrade():
        store = Store(url)
        try:
            store.upgrade()
        except Exception as error:
            errors.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_sqlite_is_set_up_for_a_server(sqlite_store):
    with sqlite_store.read() as session:
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1
        assert session.execute(text("PRAGMA busy_timeout")).scalar() >= 5000


def test_an_error_in_a_transaction_leaves_nothing_behind(store):
    def write_and_fail():
        with store.write() as session:
            row = {"id": "a", "owner": "b", "label": "", "display": "c", "scopes": "read", "secret_sha256": "d"}
            session.add(ApiKeyRow(**row, created_at=1))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert ApiKeys(store).list() == []


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "nosuchdb://x/y", ""])
def test_unusable_urls_are_told_so(url):
    with pytest.raises(InvalidInput, match="--database-url"):
        Store(url)


def test_a_missing_driver_is_told_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InvalidInput, match=r"pip install '\.\[postgres\]'"):
        Store("postgresql://u@h/x")


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFull):
        sqlite_url(tmp_path / "file" / "inside" / "cloud.sqlite")


def test_an_empty_database_says_what_to_do(tmp_path):
    store = Store(sqlite_url(tmp_path / "cloud.sqlite"))
    with pytest.raises(InternalError, match="db upgrade"):
        ApiKeys(store).list()
    store.close()


def test_a_full_disk_is_told_as_such(sqlite_store):
    with sqlite_store.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        connection.rollback()
    keys = ApiKeys(sqlite_store)

    def fill():
        for number in range(1000):
            keys.create(f"alice-{number}", "x" * 128)

    with pytest.raises(StorageFull, match="full"):
        fill()


def test_a_database_that_is_busy_for_too_long_is_away_for_a_while(sqlite_store, tmp_path, monkeypatch):
    """A device tries again, and its job goes on; a REST client gets 503."""
    monkeypatch.setattr("privtune.cloud.db.database._BUSY_TIMEOUT_MS", 10)
    impatient, other = (
        Store(str(sqlite_store.engine.url)),
        sqlite3.connect(tmp_path / "cloud.sqlite", isolation_level=None),
    )
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CloudUnreachable, match="database"):
        ApiKeys(impatient).create("alice")
    other.execute("ROLLBACK")
    ApiKeys(impatient).create("alice")
    impatient.close()


def test_the_file_is_an_ordinary_sqlite_database(sqlite_store, tmp_path):
    tables = sqlite3.connect(tmp_path / "cloud.sqlite").execute("SELECT name FROM sqlite_master WHERE type='table'")
    assert {"api_keys", "jobs", "job_events", "checkpoints", "idempotency_keys"} <= {name for (name,) in tables}


@pytest.mark.parametrize("owner", ["a" * 65, "a\0"])
def test_what_postgres_can_not_hold_is_the_callers_mistake(postgres_store, owner):
    with pytest.raises(InvalidInput, match="too long"):
        OwnerLimits(postgres_store).set(owner, unfinished_jobs=1)


def test_a_postgres_that_goes_away_and_comes_back_is_away_for_a_while(postgres_store, postgres):
    """Its server ends every connection, as in a restart or a failover."""
    ApiKeys(postgres_store).list()
    name = postgres_store.engine.url.database
    postgres.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    with pytest.raises(CloudUnreachable, match="database"):
        ApiKeys(postgres_store).list()
    postgres.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    ApiKeys(postgres_store).create("alice")


def test_a_writer_waits_no_longer_than_it_may_on_postgres(postgres_store, monkeypatch):
    monkeypatch.setattr("privtune.cloud.db.database._BUSY_TIMEOUT_MS", 10)
    impatient = Store(address(postgres_store))
    with postgres_store.write(), pytest.raises(CloudUnreachable, match="database"):
        ApiKeys(impatient).create("alice")
    ApiKeys(impatient).create("alice")
    impatient.close()
