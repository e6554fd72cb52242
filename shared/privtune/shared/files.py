"""Files and folders that appear whole or not at all, locks between processes, and OSError for every file problem."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from privtune.shared.at_rest import write_bytes

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_REMOVED = ".removed"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def native_os_errors() -> Iterator[None]:
    """Raise OSError where a library written in Rust (safetensors, tokenizers) raises an error class of its own.

    Those name the cause only in their text, like `I/O error: No space left on device (os error 28)`.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = _OS_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from error


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a scratch path; what is written there is flushed to disk and then replaces `path`, which is flushed too.

    A reader sees the old file or the new one, never a part. After a failure the scratch file is removed and `path` is
    as it was. Raises OSError.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with native_os_errors():
            yield scratch
        flush(scratch)
        os.replace(scratch, path)
        flush(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Yield a scratch folder; its files are flushed to disk and then it takes the place of `target`.

    An older `target` is removed just before. One process at a time may replace a folder. Raises OSError.

    Args:
        target: the folder to make or replace.
        resumable: a failure leaves the scratch folder, and the next attempt finds what is in it. Otherwise the scratch
            folder starts empty and a failure removes it.
    """
    scratch = target.with_name(f".{target.name}.part")
    if not resumable:
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
    make_folder(target.parent)
    scratch.mkdir(exist_ok=resumable)
    try:
        with native_os_errors():
            yield scratch
        flush_all(scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        flush(target.parent)
    finally:
        if not resumable:
            shutil.rmtree(scratch, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it; on return it is gone from the disk. Raises OSError.

    It loses its name first, so nobody finds a part of it. Called again it completes what was interrupted; a folder that
    is gone already, or that another process removes as well, is no error.
    """
    scratch = folder.with_name(f".{folder.name}{_REMOVED}")
    while folder.exists() or scratch.exists():
        with suppress(FileNotFoundError):
            if not scratch.exists():
                folder.rename(scratch)
            shutil.rmtree(scratch)
    if folder.parent.exists():
        flush(folder.parent)


def finish_removals(parent: Path) -> None:
    """Complete what `remove_folder` could not end in this folder, because its process was killed."""
    for scratch in parent.glob(f".*{_REMOVED}"):
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Replace a UTF-8 text file, whole or not at all. With `private`, only its owner can read it. Raises OSError."""
    with replacing_file(path) as scratch:
        scratch.touch(0o600 if private else 0o666)
        write_bytes(scratch, text.encode())


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Replace a JSON file, whole or not at all; see `write_text`."""
    write_text(path, json.dumps(value, indent=1), private=private)


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a file against other processes. Yields False when another one holds it; with `wait`, waits for it.

    The operating system releases the lock when its holder dies. Raises OSError when the file can't be created, or,
    with a `strerror` that says so, when its file system has no locks.
    """
    # Without the fallback, which leaves a file behind that outlives a killed holder.
    lock = FileLock(path, timeout=-1 if wait else 0, mode=0o600, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise OSError(error.errno, "its file system has no locks, as on some network drives", str(path)) from error
        raise
    try:
        yield True
    finally:
        lock.release()


def files_identity(root: Path) -> str | None:
    """Hex name of a file, or of all files in a folder, by their paths, sizes and times of change, unread.

    Changed contents have another name; so may unchanged ones, where the files were copied. None where there are none.
    """
    found = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    try:
        facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    except OSError:
        return None
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest() if facts else None


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder, and what is missing above it, so that its name outlives a loss of power. Raises OSError.

    mode: of a folder that is made; those above it get the usual one.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode, exist_ok=True)
    with suppress(PermissionError):  # above the user's own folders there may be one that can't be read
        flush(path.parent)


def flush_all(folder: Path) -> None:
    """Flush everything in a folder to disk. Raises OSError."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk. Raises OSError."""
    if os.name == "nt":  # flushes only what is open for writing, and no folders
        if path.is_dir():
            return
        descriptor = os.open(path, os.O_RDWR)
    else:
        descriptor = os.open(path, os.O_RDONLY)  # a copy of a read-only file must not be refused
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
