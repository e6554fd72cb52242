"""`privtune-cloud db`: the database's schema."""

from __future__ import annotations

import typer

from privtune.cloud.cli.output import print_result
from privtune.cloud.cli.shared_options import DEFAULT_DATA, AsJson, Data, DatabaseUrl

app = typer.Typer(no_args_is_help=True, help="The database's schema.")


@app.command("upgrade")
def upgrade_database(data: Data = DEFAULT_DATA, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Upgrade the database to this version's schema. `serve` does it by itself."""
    from privtune.cloud.db.store import open_store

    with open_store(data, database_url) as store:
        revision = store.revision()
    print_result({"revision": revision}, f"The database is at revision {revision}.", as_json=as_json)
