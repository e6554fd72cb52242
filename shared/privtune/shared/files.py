"""Failures of the file system, told alike whoever met them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def native_os_errors() -> Iterator[None]:
    """Raise OSError where a library written in Rust (safetensors, tokenizers) raises its own kind for one.

    They name the cause in their text only, like `I/O error: No space left on device (os error 28)`.
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
