"""Which processes use a home right now: each holds a file in a folder of it until it ends or is killed.

home/runs   runs that draw
home/open   commands that read or write anything
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from privtune.device.home.paths import private_folder
from privtune.shared.errors import JobConflict, StorageFull
from privtune.shared.files import held
from privtune.shared.wording import counted

FOLDER = "runs"
OPEN = "open"
ALONE = ".alone.lock"  # held by a process that needs the home for itself


@contextmanager
def run_lock(home: Path) -> Iterator[None]:
    """Draw in this home. Any number of runs may. Raises StorageFull where the file can't be made or locked."""
    with _present(home, FOLDER):
        yield


def runs_under_way(home: Path) -> int:
    """How many runs draw in this home; files of killed ones go."""
    return _count(home, FOLDER)


@contextmanager
def opened(home: Path) -> Iterator[None]:
    """Use this home. Any number of processes may; waits for one that needs it for itself. Raises as `run_lock`."""
    with _present(home, OPEN):
        with held(home / ALONE, wait=True):  # whoever comes to hold it from here on sees this process
            pass
        yield


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Have the home for oneself. Raises JobConflict while another process uses it, OSError without locks."""
    with held(home / ALONE, wait=True):
        if others := _count(home, OPEN):
            raise JobConflict(f"{counted(others, 'process')} (agent, server, run) use this home; end them first.")
        yield


@contextmanager
def _present(home: Path, folder: str) -> Iterator[None]:
    file = home / folder / f"{os.getpid()}-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        try:
            private_folder(home)
            file.parent.mkdir(exist_ok=True, mode=0o700)
            stack.callback(file.unlink, missing_ok=True)
            stack.enter_context(held(file))
        except OSError as error:
            raise StorageFull(f"{file} can't be locked: {error.strerror}; set --home to another folder.") from None
        yield


def _count(home: Path, folder: str) -> int:
    count = 0
    for file in (home / folder).glob("*"):
        with held(file) as free:
            count += not free
            if free:
                file.unlink(missing_ok=True)
    return count
