"""What tests of both databases share."""

from __future__ import annotations

from privtune.cloud.db.store import Store


def address(store: Store) -> str:
    """The URL that a store was opened with, its password included."""
    return store.engine.url.render_as_string(hide_password=False)
