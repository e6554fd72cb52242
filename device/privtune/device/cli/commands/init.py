"""`privtune init`: ask for what every command needs, and write privtune.yaml."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from privtune.device.cli.connection import CloudOptions
from privtune.device.cli.error_report import guarded
from privtune.device.cli.mechanism_options import Protect
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson, Threads
from privtune.device.client.settings_file import NAME


@guarded
@grouped
def init(
    connection: CloudOptions,
    protect: Protect = None,
    threads: Threads = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take the options, and replace a file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask for the cloud, your key and how your text is protected, and write `privtune.yaml` into the home folder.

    Every command reads that file; an option or a variable of the environment comes before it. What is given as an
    option is not asked for.

    \b
    Examples:
      privtune init
      privtune init --yes --cloud https://cloud.example:8080 --protect words
    """
    from privtune.device.protections.protection import DEFAULT, PROTECTIONS, protection
    from privtune.shared.errors import InvalidInput

    folder = connection.folder
    path = folder / NAME
    settings: dict[str, Any] = {
        "cloud": connection.cloud,
        "api_key": connection.api_key,
        "ca_cert": None if connection.ca_cert is None else str(connection.ca_cert.expanduser().absolute()),
        "protect": protect,
        "threads": threads,
    }
    if not yes:
        if path.exists() and not typer.confirm(f"{path} exists. Replace it?", err=True):
            raise typer.Exit(0)
        settings["cloud"] = settings["cloud"] or typer.prompt("Address of the cloud's REST API", err=True)
        if not settings["api_key"]:
            settings["api_key"] = typer.prompt(
                "Your API key (empty: leave it in PRIVTUNE_API_KEY)", default="", hide_input=True, show_default=False,
                err=True,
            )  # fmt: skip
        if not settings["protect"]:
            settings["protect"] = typer.prompt(
                f"How is your text protected ({', '.join(PROTECTIONS)}; `privtune protections` compares them)",
                default=DEFAULT,
                err=True,
            )
    protection(settings["protect"] or DEFAULT)
    if not settings["cloud"]:
        raise InvalidInput("Which cloud? Give --cloud https://host:port.", param="cloud")
    _check_address(settings["cloud"], settings["api_key"])
    kept = {name: value for name, value in settings.items() if value}
    _write(path, kept)
    told = {"path": str(path), "settings": sorted(kept)}
    typer.echo(json.dumps(told) if as_json else f"Wrote {path}. Now try: privtune doctor")


def _check_address(cloud: str, api_key: str | None) -> None:
    """Raises InvalidInput for an address that can't be one, Unauthenticated for such a key; asks nobody."""
    from privtune.device.link.rest import ControlPlane

    ControlPlane(cloud, api_key or "pt-none", None).close()


def _write(path: os.PathLike[str], settings: dict[str, Any]) -> None:
    from pathlib import Path

    import yaml

    from privtune.shared.files import write_text

    write_text(Path(path), yaml.safe_dump(settings, sort_keys=False), private=True)
