"""A folder that appears whole or not at all, with a list of its own files."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privtune.shared.errors import InvalidInput, StorageFull
from privtune.shared.files import native_os_errors

CARD = "README.md"
MADE_BY = "privtune export"  # in the list of files: this folder is one of ours
# Tokenizer, configuration and card: more than they ever take.
SMALL_FILES = 32 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_target(target: Path) -> None:
    """Raises InvalidInput unless `target` is free, or an empty folder."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise InvalidInput(f"{target} exists and is not empty; choose another folder")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target` that takes its place at the end; after any failure, Ctrl-C too, it is gone.

    SIGTERM is a failure only within `privtune.device.cli.interrupt.ending_in_order`.

    Raises what `check_target` raises, and StorageFull when it can't be written.
    """
    check_target(target)
    scratch = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        scratch.mkdir(parents=True)
        with native_os_errors():
            yield scratch
        if target.exists():
            target.rmdir()
        scratch.rename(target)
    except OSError as error:
        remedy = "free room and" if error.errno in _NO_ROOM else "choose a folder that you can write to, and"
        raise StorageFull(f"{target} can't be written: {error.strerror}; {remedy} export again") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_room(folder: Path, size: int) -> None:
    """Raises StorageFull when the disk of `folder` has no room for so many bytes and the small files beside them."""
    free = shutil.disk_usage(folder).free
    if free < size + SMALL_FILES:
        raise StorageFull(
            f"The export takes about {(size + SMALL_FILES) / 1e6:,.0f} MB and the disk of {folder.parent} has "
            f"{free / 1e6:,.0f} MB free; nothing was written. Free room, or choose a smaller --dtype."
        )
