"""Running out of memory as an error with a reason, whoever reports it: Python, numpy, torch on a CPU or a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from privtune.shared.errors import CloudOutOfMemory

T = TypeVar("T")

_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory")  # of torch's plain RuntimeErrors


def within_memory(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function; when memory runs out in it, free what it had allocated and raise `CloudOutOfMemory`."""
    try:
        return function(*arguments)
    except (MemoryError, RuntimeError) as error:
        if not _of_memory(error):
            raise
        detail = str(error)
    # Only here, without the exception, are the frames gone that hold the tensors of the failed call.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise CloudOutOfMemory(
        "the cloud is out of memory: lower --batch-size or --max-length, or try again when other jobs have ended",
        detail=detail,
    )


def _of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error).lower() for word in _WORDS)
