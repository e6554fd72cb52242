"""Tables on the terminal, by rich. In a pipe every row is one line, and nothing is cut off."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from privtune.device.client.consoles import console_of


def print_table(
    rows: Iterable[Sequence[str]],
    headings: Sequence[str] = (),
    *,
    numbers: Sequence[int] = (),
    stream: TextIO | None = None,
) -> None:
    """Print a table without lines, for eyes and for `awk`; nothing without rows.

    Args:
        rows: their cells.
        headings: of the columns; none by default.
        numbers: positions of the columns that are aligned to the right.
        stream: where to print; stdout by default.
    """
    from rich.table import Table

    listed = [tuple(row) for row in rows]
    if not listed:
        return
    table = Table(box=None, show_header=bool(headings), header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings or listed[0]):
        table.add_column(heading if headings else "", justify="right" if number in numbers else "left", overflow="fold")
    for row in listed:
        table.add_row(*row)
    console = console_of(stream or sys.stdout)
    with console.capture() as printed:
        console.print(table)
    console.file.writelines(f"{line.rstrip()}\n" for line in printed.get().splitlines())


def print_result(facts: Mapping[str, object], line: str, *, as_json: bool) -> None:
    """What a command did: a line for a person, or its facts for a program."""
    print(json.dumps(dict(facts), default=str) if as_json else line)


def print_facts(facts: Mapping[str, object]) -> None:
    """One `name: value` per line, the values aligned; a value that is None is left out."""
    print_table((f"{name}:", str(value)) for name, value in facts.items() if value is not None)
