"""`privtune-cloud keys`: create, list, rotate, revoke."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from privtune.cloud.cli.durations import seconds
from privtune.cloud.cli.output import print_result, print_table, utc
from privtune.cloud.cli.shared_options import DEFAULT_DATA, AsJson, Data, DatabaseUrl

if TYPE_CHECKING:
    from privtune.cloud.auth.key_rows import ApiKey

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, rotate, revoke. Works while the cloud serves.")


Key = Annotated[str, typer.Argument(help="The key's id, or its visible beginning.")]


@app.command("create")
def create_key(
    owner: Annotated[str, typer.Option(help="Whose jobs the key opens; an owner may have several keys.")] = "default",
    label: Annotated[str, typer.Option(help="Where it is used, shown in the list.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may do, repeatable. read: list and show; submit: create and steer jobs and teachings; "
            "device: run jobs and use their models; admin: manage the owner's keys over REST. Default: read, submit "
            "and device.",
            show_default=False,
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="How long it lasts, like 90d, 12h or 30m. Default: until revoked.")
    ] = None,
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key and print it once. Only its hash is kept.

    A machine that only submits and watches jobs takes `--scope read --scope submit`; an agent `--scope read --scope
    device`; whoever runs `privtune finetune` all three.

    Example: `export PRIVTUNE_API_KEY=$(privtune-cloud keys create --owner alice)`
    """
    from privtune.cloud.auth import ApiKeys
    from privtune.cloud.auth.key_rows import DEFAULT_SCOPES
    from privtune.cloud.db.store import begun, open_store

    life = None if expires is None else seconds(expires, "expires")
    first = database_url is None and not begun(data)
    with open_store(data, database_url) as store:
        made = ApiKeys(store).create(owner, label, scopes=scope or DEFAULT_SCOPES, expires_in_s=life)
    print_result(asdict(made.key) | {"secret": made.secret}, made.secret, as_json=as_json)
    typer.echo(_about(made.key), err=True)
    if first:
        typer.echo(f"There was no cloud in {data.absolute()}: a new one begins there.", err=True)


@app.command("list")
def list_keys(
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List keys by their visible beginning."""
    from privtune.cloud.auth import ApiKeys
    from privtune.cloud.db.store import open_store

    with open_store(data, database_url, new=False) as store:
        keys = ApiKeys(store).list(owner)
    rows = [
        [
            key.id,
            key.display,
            key.owner,
            key.label,
            " ".join(key.scopes),
            utc(key.last_used_at),
            _state(key),
        ]
        for key in keys
    ]
    columns = ["id", "key", "owner", "label", "scopes", "last used", "state"]
    facts = [asdict(key) for key in keys] if as_json else None
    print_table(columns, rows, empty="No key yet: `privtune-cloud keys create --owner NAME`.", facts=facts)


@app.command("rotate")
def rotate_key(
    key: Key,
    overlap: Annotated[
        str, typer.Option(help="How long the old key still works, like 1d or 30m. 0s: it ends at once.")
    ] = "0s",
    expires: Annotated[
        str | None, typer.Option(help="How long the new key lasts. Default: as long as the old one was made for.")
    ] = None,
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a new key with the owner, label and scopes of another, and print it once; the other ends.

    Example: `privtune-cloud keys rotate pt-Ab3dEf --overlap 1d`
    """
    from privtune.cloud.auth import ApiKeys
    from privtune.cloud.db.store import open_store

    life = None if expires is None else seconds(expires, "expires")
    with open_store(data, database_url, new=False) as store:
        keys = ApiKeys(store)
        made = keys.rotate(key.removesuffix("…"), overlap_s=seconds(overlap, "overlap"), expires_in_s=life)
        old = next(one for one in keys.list(made.key.owner) if one.replaced_by == made.key.id)
    print_result(asdict(made.key) | {"secret": made.secret, "old": asdict(old)}, made.secret, as_json=as_json)
    typer.echo(_about(made.key), err=True)
    typer.echo(
        f"The old key {old.id} {'ends' if old.ended(time.time()) is None else 'ended'} {utc(old.expires_at)}.", err=True
    )


@app.command("revoke")
def revoke_key(key: Key, data: Data = DEFAULT_DATA, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Revoke a key; it is refused from the next request on, and its open streams end within seconds."""
    from privtune.cloud.auth import ApiKeys
    from privtune.cloud.db.store import open_store

    with open_store(data, database_url, new=False) as store:
        revoked = ApiKeys(store).revoke(key.removesuffix("…"))
    print_result(asdict(revoked), f"Revoked {revoked.id} of {revoked.owner}.", as_json=as_json)


def _about(key: ApiKey) -> str:
    lasts = "until it is revoked" if key.expires_at is None else f"until {utc(key.expires_at)} UTC"
    return (
        f"Key {key.id} of {key.owner} for {', '.join(key.scopes)}, {lasts}. It is not shown again; keep it in "
        "PRIVTUNE_API_KEY."
    )


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {utc(key.revoked_at)}"
    if key.expires_at is None:
        return "active"
    return f"{'until' if key.ended(time.time()) is None else 'expired'} {utc(key.expires_at)}"
