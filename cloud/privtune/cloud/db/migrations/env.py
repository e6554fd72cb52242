"""Alembic's entry: runs the migrations on the connection that `privtune.cloud.db.store.Store.upgrade` hands over.

To add one: change the models in cloud/store.py, write versions/NNNN_what.py by hand after the last one, and run
tests/unit/cloud/db/test_store.py, which compares head with the models.
"""

from __future__ import annotations

from alembic import context

from privtune.cloud.db.store import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite can't alter columns in place
)
context.run_migrations()
