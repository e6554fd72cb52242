"""How commands print tables and times."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import typer


def print_result(facts: Any, line: str, *, as_json: bool) -> None:
    """What a command did: a line for a person, or its facts for a program."""
    typer.echo(json.dumps(facts, default=str) if as_json else line)


def print_table(
    columns: list[str], rows: list[list[str]], *, empty: str, facts: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Print a table, or the sentence `empty` when there are no rows. The first column, a name, stays on one line.

    facts: of the rows, for a program: these are printed instead, as JSON.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if facts is not None:
        typer.echo(json.dumps(list(facts), default=str, indent=1))
        return
    if not rows:
        typer.echo(empty)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def utc(seconds: int | None) -> str:
    """Seconds since 1970 as a date and time in UTC; "never" for None."""
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
