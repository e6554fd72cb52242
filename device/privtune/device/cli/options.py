"""Options that several commands share. Light: everything heavy is imported inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from privtune.device.client.panels import CONNECTION as CONNECTION
from privtune.device.client.panels import DATA as DATA
from privtune.device.client.panels import MACHINE as MACHINE
from privtune.device.client.panels import NOISE as NOISE


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
    """The device's folder (`closed_home`), in use and unlocked until this command ends. Raises HomeLocked."""
    from privtune.device.client.open_home import open_home

    folder = closed_home(home)
    open_home(folder)
    return folder


def closed_home(home: Path | None) -> Path:
    """The device's folder, absolute, made or closed to other users; a warning says so where that fails."""
    from privtune.device.client import open_home
    from privtune.device.home.paths import default_home

    return open_home.closed_home((home or default_home()).expanduser().absolute(), to_stderr)


def limit_threads(threads: int | None) -> None:
    """Let torch compute on this many CPU threads; None leaves torch's own choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def to_stderr(line: str) -> None:
    """A line for people, next to the result on stdout."""
    from privtune.shared.printable import printable

    typer.echo(printable(line), err=True)
