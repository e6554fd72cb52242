"""How commands print tables and times."""

from __future__ import annotations

import time

import typer


def print_table(columns: list[str], rows: list[list[str]], *, empty: str) -> None:
    """Print a table, or the sentence `empty` when there are no rows. The first column, a name, stays on one line."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
