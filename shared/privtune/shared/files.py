"""Files that appear whole or not at all, one holder per lock file, and one kind of error for the file system."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def native_os_errors() -> Iterator[None]:
    """Raise OSError where a library written in Rust (safetensors, tokenizers) raises its own kind for one.

    They name the cause only in their text, like `I/O error: No space left on device (os error 28)`.
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
    """A scratch path beside `path` that replaces it at the end, flushed to disk; after any failure it is gone.

    A reader sees the old file or the new one, never a part. Raises OSError.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with native_os_errors():
            yield scratch
        _flush(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """An empty scratch folder beside `target` that takes its place at the end; after any failure it is gone.

    An older `target` is removed just before the exchange. Raises OSError.
    """
    scratch = target.with_name(f".{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
    scratch.mkdir(parents=True)
    try:
        with native_os_errors():
            yield scratch
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Replace a text file, whole or not at all. private: only its owner may read it. Raises OSError."""
    with replacing_file(path) as scratch:
        scratch.touch(0o600 if private else 0o666)
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Replace a JSON file, whole or not at all; see `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False), private=private)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a lock file against other processes, without waiting. Yields False when another one has it.

    The operating system releases it when its holder dies. Raises OSError when the file can't be made.
    """
    lock = FileLock(path, timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
