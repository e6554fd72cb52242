"""Migrations keep what is in the tables that they leave, on their way down and up again."""

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, MetaData, select

from privtune.cloud.db.database import WRITING
from privtune.cloud.db.store import migration_config
from privtune.cloud.db.tables import Base


def filled(column):
    """A value for a column: whatever is not a number or a document is the same text, so that foreign keys hold."""
    if isinstance(column.type, JSON):
        return {"a": [1, None, "é"]}
    kind = column.type.python_type
    return True if kind is bool else 1 << 40 if kind is int else "x"


def fill(connection):
    """A row in every table that has none."""
    for table in Base.metadata.sorted_tables:
        if connection.execute(select(table)).first() is not None:
            continue
        values = {column.name: filled(column) for column in table.columns}
        values |= {column.name: 1 for column in table.primary_key if column.name == "number"}
        connection.execute(table.insert().values(values))


def rows(connection):
    """Every table's rows, as dictionaries, but for Alembic's own."""
    found = MetaData()
    found.reflect(connection)
    return {
        name: [dict(row._mapping) for row in connection.execute(select(table))]
        for name, table in found.tables.items()
        if name != "alembic_version"
    }


def move(store, direction, revision):
    config = migration_config()
    with store.engine.connect().execution_options(**WRITING) as connection, connection.begin():
        config.attributes["connection"] = connection
        getattr(command, direction)(config, revision)
    with store.engine.connect() as connection:
        return rows(connection)


def test_every_step_down_and_up_keeps_every_row_that_has_a_place(store):
    revisions = [script.revision for script in ScriptDirectory.from_config(migration_config()).walk_revisions()]
    with store.engine.begin() as connection:
        fill(connection)
    with store.engine.connect() as connection:
        before = rows(connection)
    assert all(before.values())
    assert set(before) == set(Base.metadata.tables)
    for revision in revisions[1:]:
        for name, content in move(store, "downgrade", revision).items():
            assert content == [{column: row[column] for column in content[0]} for row in before[name]], (revision, name)
    left = move(store, "upgrade", "head")
    assert left.keys() == before.keys()
    for name, content in left.items():
        assert len(content) in (0, len(before[name]))
        for row, was in zip(content, before[name], strict=False):
            for column, value in row.items():
                assert value in (was[column], None) or column == "scopes", (name, column)
    with store.engine.begin() as connection:
        fill(connection)
    assert move(store, "downgrade", "base") == {}
