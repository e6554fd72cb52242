"""Options that several commands share. Light: everything heavy is imported inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

CONNECTION = "Connection"
DATA = "Data"
MACHINE = "This machine"


def option(help_text: str, panel: str | None, *names: str, **more: Any) -> Any:
    """An option of a panel of `--help`; a default is part of its help text."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False, **more)


Home = Annotated[
    Path | None,
    option(
        "Folder for jobs, heads and the noise already drawn. Default: ~/.privtune.", MACHINE, envvar="PRIVTUNE_HOME"
    ),
]
Threads = Annotated[
    int | None,
    option(
        "CPU threads for the model's part on this machine. Default: torch's choice, about one per core. Set it when "
        "the cloud runs on the same machine.",
        MACHINE,
        min=1,
        envvar="PRIVTUNE_THREADS",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job id; `privtune jobs list` shows yours.")]


def home_folder(home: Path | None) -> Path:
    """The device's folder, absolute."""
    from privtune.device.home.paths import default_home

    return (home or default_home()).expanduser().absolute()


def limit_threads(threads: int | None) -> None:
    """Let torch compute on this many CPU threads; None leaves torch's own choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def to_stderr(line: str) -> None:
    """A line for people, next to the result on stdout."""
    typer.echo(line, err=True)
