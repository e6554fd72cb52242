"""`privtune-cloud audit-log`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from privtune.cloud.cli.durations import seconds
from privtune.cloud.cli.output import print_table, utc
from privtune.cloud.cli.shared_options import DEFAULT_DATA, Data, DatabaseUrl
from privtune.shared.errors import ArtifactCorrupt

if TYPE_CHECKING:
    from privtune.cloud.audit_log.check import AuditEntry
    from privtune.cloud.db.store import Store


def audit_log(
    since: Annotated[str | None, typer.Option(help="Only the last 90d, 12h or 30m.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only what was done to this owner's things.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One entry a line, as JSON, with its hash.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that nothing was changed or removed, and print the log's end.")
    ] = False,
    noted: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER:HASH", help="With --verify: the end as it was printed before; it must be there still."
        ),
    ] = None,
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
) -> None:
    """Show who did what: keys, limits, deletions, jobs taken from devices, homes, starts. Works while the cloud serves.

    Example: `privtune-cloud audit-log --since 30d --owner alice`
    """
    from privtune.cloud.audit_log.check import entries
    from privtune.cloud.db.store import open_store

    begin = 0 if since is None else int(time.time()) - seconds(since, "since")
    with open_store(data, database_url) as store:
        if verify or noted is not None:
            _verify(store, noted)
            return
        found = entries(store, since=begin, owner=owner)
        if as_json:
            for entry in found:
                typer.echo(json.dumps(asdict(entry)))
            return
        rows = [_row(entry) for entry in found]
    columns = ["", "when (UTC)", "who", "from", "what", "owner", "to", "how"]
    print_table(columns, rows, empty="Nothing is in the audit log from that time.")


def _verify(store: Store, noted: str | None) -> None:
    from privtune.cloud.audit_log.check import verify

    found = verify(store, noted)
    if found.problem is not None:
        raise ArtifactCorrupt(f"The audit log is not whole: {found.problem}.")
    typer.echo(f"{found.count:,} entries, none changed, none missing. Note this end where nobody here can write:")
    typer.echo(found.end)


def _row(entry: AuditEntry) -> list[str]:
    how = " ".join(f"{name}={json.dumps(value)}" for name, value in entry.detail.items() if value not in (None, "", []))
    return [str(entry.number), utc(entry.at), entry.who, entry.origin, entry.action, entry.owner, entry.target, how]
