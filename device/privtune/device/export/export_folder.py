"""A folder that appears whole or not at all, with a list of its own files."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privtune.shared.errors import InvalidInput, StorageFull
from privtune.shared.files import flush, flush_all, native_os_errors

CARD = "README.md"
MADE_BY = "privtune export"  # in the manifest: marks a folder as an export
# Upper bound for tokenizer, configuration and card.
SMALL_FILES = 32 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_target(target: Path) -> None:
    """Raises InvalidInput unless `target` does not exist or is an empty folder."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise InvalidInput(f"{target} exists and is not empty; choose another folder")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A scratch folder next to `target` that becomes `target` at the end; any failure, Ctrl-C too, removes it.

    SIGTERM is a failure only within `privtune.device.cli.signals.ending_in_order`.

    Raises what `check_target` raises, and StorageFull when it can't be written.
    """
    check_target(target)
    scratch = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
        scratch.mkdir(parents=True)
        with native_os_errors():
            yield scratch
        flush_all(scratch)
        if target.exists():
            target.rmdir()  # fails if it has got files meanwhile: unlike `replacing_folder`, an export removes none
        scratch.rename(target)
        flush(target.parent)
    except OSError as error:
        remedy = "free room and" if error.errno in _NO_ROOM else "choose a folder that you can write to, and"
        raise StorageFull(f"{target} can't be written: {error.strerror}; {remedy} export again") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_room(folder: Path, size: int) -> None:
    """Raises StorageFull unless the disk of `folder` has room for `size` bytes and the small files."""
    free = shutil.disk_usage(folder).free
    if free < size + SMALL_FILES:
        raise StorageFull(
            f"The export takes about {(size + SMALL_FILES) / 1e6:,.0f} MB and the disk of {folder.parent} has "
            f"{free / 1e6:,.0f} MB free; nothing was written. Free space, or choose a smaller --dtype."
        )
