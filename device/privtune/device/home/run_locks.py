"""Which runs draw in a home right now: each holds a file in `home/runs` until it ends or is killed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from privtune.device.home.paths import private_folder
from privtune.shared.errors import StorageFull
from privtune.shared.files import held

FOLDER = "runs"


@contextmanager
def run_lock(home: Path) -> Iterator[None]:
    """Draw in this home. Any number of runs may. Raises StorageFull where the file can't be made or locked."""
    file = home / FOLDER / f"{os.getpid()}-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        try:
            private_folder(home)
            file.parent.mkdir(exist_ok=True, mode=0o700)
            stack.callback(file.unlink, missing_ok=True)
            stack.enter_context(held(file))
        except OSError as error:
            raise StorageFull(f"{file} can't be locked: {error.strerror}; set --home to another folder.") from None
        yield


def runs_under_way(home: Path) -> int:
    """How many runs draw in this home; files of killed ones go."""
    count = 0
    for file in (home / FOLDER).glob("*"):
        with held(file) as free:
            count += not free
            if free:
                file.unlink(missing_ok=True)
    return count
