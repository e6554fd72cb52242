"""One look of progress for every command: what is done, a bar of one width, then figures or the time.

On a terminal the bars live on stderr, beside the result on stdout; in a log each finished step is a line; with --json
there is nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from privtune.device.client.consoles import console_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

WIDTH = 24
Say = Callable[[str, float], None]  # what is done, and which share of it


def bars(console: Console, *more: ProgressColumn, **options: Any) -> Progress:
    """Bars of the one look. more: columns after the bar."""
    from rich.progress import BarColumn, Progress, TextColumn

    about = TextColumn("{task.description}", markup=False)
    return Progress(about, BarColumn(bar_width=WIDTH), *more, console=console, **options)


@contextmanager
def reported(*, quiet: bool) -> Iterator[Say]:
    """Shows each step that is reported: a bar on a terminal, else a line once it is done."""
    from rich.progress import TimeElapsedColumn

    console = console_of(sys.stderr)
    shown, known = bars(console, TimeElapsedColumn(), disable=quiet), dict[str, "TaskID"]()

    def say(what: str, share: float) -> None:
        if console.is_terminal:
            if what not in known:
                shown.start()  # not before the first step: an empty line would precede an error
                known[what] = shown.add_task(what, total=1.0)
            shown.update(known[what], completed=share)
        elif share >= 1 and not quiet:
            console.print(what)

    try:
        yield say
    finally:
        if known:
            shown.stop()
