"""Where people read: a terminal, a pipe or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_UNBOUNDED = 100_000  # columns of a pipe or a file


def console_of(stream: TextIO) -> Console:
    """A console that prints text as it is: without markup, emoji codes or colours for numbers."""
    from rich.console import Console

    width = None if stream.isatty() else _UNBOUNDED
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty())
