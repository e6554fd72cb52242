"""`privtune-cloud limits`: what an owner may take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from privtune.cloud.cli.output import print_result, print_table
from privtune.cloud.cli.shared_options import DEFAULT_DATA, AsJson, Data, DatabaseUrl

app = typer.Typer(no_args_is_help=True, help="Limits of single owners. Works while the cloud serves.")


@app.command("set")
def set_limits(
    owner: Annotated[str, typer.Argument(help="The owner of API keys.")],
    model: Annotated[list[str] | None, typer.Option(help="A model that it may use, repeatable. Default: all.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Unfinished jobs.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests in a minute.")] = None,
    upload_mib: Annotated[int | None, typer.Option(min=1, help="MiB that its devices may send in a minute.")] = None,
    stored_mib: Annotated[int | None, typer.Option(min=1, help="MiB of its checkpoints and adapters.")] = None,
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Give an owner limits of its own, in place of earlier ones; what is left out is as `serve` has it for everyone.

    Example: `privtune-cloud limits set alice --model minilm --jobs 5 --stored-mib 2048`
    """
    from privtune.cloud.db.store import open_store
    from privtune.cloud.limits import OwnerLimits

    given = {
        "models": model,
        "unfinished_jobs": jobs,
        "requests_per_minute": requests,
        "bytes_per_minute": None if upload_mib is None else upload_mib << 20,
        "stored_bytes": None if stored_mib is None else stored_mib << 20,
    }
    limits = {name: value for name, value in given.items() if value is not None}
    with open_store(data, database_url, new=False) as store:
        OwnerLimits(store).set(owner, **limits)
    line = f"The limits of {owner} are set; they hold within seconds."
    print_result({"owner": owner, **limits}, line, as_json=as_json)


@app.command("list")
def list_limits(data: Data = DEFAULT_DATA, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the owners with limits of their own."""
    from privtune.cloud.db.store import open_store
    from privtune.cloud.limits import OwnerLimits

    with open_store(data, database_url, new=False) as store:
        limits = sorted(OwnerLimits(store).own().items())
    rows = [[owner, *_cells(own)] for owner, own in limits]
    facts = [{"owner": owner, **own} for owner, own in limits] if as_json else None
    columns = ["owner", "models", "jobs", "requests a minute", "MiB sent a minute", "MiB stored"]
    print_table(columns, rows, empty="Every owner has the limits of `privtune-cloud serve`.", facts=facts)


def _cells(own: dict[str, Any]) -> list[str]:
    sizes = (own.get("bytes_per_minute"), own.get("stored_bytes"))
    numbers = (own.get("unfinished_jobs"), own.get("requests_per_minute"), *(size and size >> 20 for size in sizes))
    return [" ".join(own.get("models", ())), *("" if number is None else f"{number:,}" for number in numbers)]
