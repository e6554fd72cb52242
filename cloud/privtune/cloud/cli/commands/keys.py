"""`privtune-cloud keys`: create, list, revoke."""

from __future__ import annotations

from typing import Annotated

import typer

from privtune.cloud.cli.output import print_table, utc
from privtune.cloud.cli.shared_options import DEFAULT_DATA, Data, DatabaseUrl

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke. Works while the cloud serves.")


@app.command("create")
def create_key(
    owner: Annotated[str, typer.Option(help="Whose jobs the key opens; an owner may have several keys.")] = "default",
    label: Annotated[str, typer.Option(help="Where it is used, shown in the list.")] = "",
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
) -> None:
    """Create an API key and print it once. Only its hash is kept.

    Example: `export PRIVTUNE_API_KEY=$(privtune-cloud keys create --owner alice)`
    """
    from privtune.cloud.auth import ApiKeys
    from privtune.cloud.db.store import open_store

    with open_store(data, database_url) as store:
        made = ApiKeys(store).create(owner, label)
    typer.echo(made.secret)
    typer.echo(f"Key {made.key.id} of {owner}. It is not shown again; keep it in PRIVTUNE_API_KEY.", err=True)


@app.command("list")
def list_keys(data: Data = DEFAULT_DATA, database_url: DatabaseUrl = None) -> None:
    """List keys by their visible beginning."""
    from privtune.cloud.auth import ApiKeys
    from privtune.cloud.db.store import open_store

    with open_store(data, database_url) as store:
        keys = ApiKeys(store).list()
    rows = [
        [
            key.id,
            f"{key.display}…",
            key.owner,
            key.label,
            utc(key.created_at),
            utc(key.last_used_at),
            "active" if key.revoked_at is None else f"revoked {utc(key.revoked_at)}",
        ]
        for key in keys
    ]
    columns = ["id", "key", "owner", "label", "created", "last used", "state"]
    print_table(columns, rows, empty="No key yet: `privtune-cloud keys create --owner NAME`.")


@app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="The key's id, or its visible beginning.")],
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke a key; it is refused from the next request on."""
    from privtune.cloud.auth import ApiKeys
    from privtune.cloud.db.store import open_store

    with open_store(data, database_url) as store:
        revoked = ApiKeys(store).revoke(key.removesuffix("…"))
    typer.echo(f"Revoked {revoked.id} of {revoked.owner}.")
