"""Alembic's entry point: runs the migrations on the connection of `privtune.cloud.db.store.Store.upgrade`.

To add a migration: change the models in db/tables, write versions/WHAT.py by hand on top of the last one, and run
tests/unit/cloud/db, which compares the migrated schema with the models and moves data up and down, on both databases.
"""

from __future__ import annotations

from alembic import context

from privtune.cloud.db.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite can't alter columns in place
)
context.run_migrations()
