"""How transformers is called: never with remote code, without progress bars, and with its errors in one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as hf_logging

from privtune.shared.errors import ModelNotFound, ModelUnsupported

SAFE: dict[str, Any] = {"trust_remote_code": False}


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no table of missing keys for a head that is new by design."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextmanager
def without_hub_code() -> Iterator[None]:
    """For imports that may bring bitsandbytes: it fetches compiled code from the hub where the package kernels is."""
    there, log = sys.modules.get("kernels"), logging.getLogger("bitsandbytes")
    level = log.level
    sys.modules["kernels"] = None  # type: ignore[assignment]  # as if it were not installed
    log.setLevel(logging.ERROR)  # it would advise to install it
    try:
        yield
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if there is not None:
            sys.modules["kernels"] = there


@contextmanager
def one_line(ref: str) -> Iterator[None]:
    """Raise transformers' errors as `ModelNotFound` or `ModelUnsupported` with one line; the original is the cause."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise ModelUnsupported(f"'{ref}' needs its own Python code, which is never run.") from error
        if "safetensors" in text and isinstance(error, OSError):
            raise ModelUnsupported(f"'{ref}' has no safetensors weights; pickle files are never loaded.") from error
        if isinstance(error, OSError):
            offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
            raise ModelNotFound(
                f"No model '{ref}' here or on the hub{offline}. Give a folder, a hub id or a .gguf file."
            ) from error
        raise ModelUnsupported(f"'{ref}' can't be loaded: {text.splitlines()[0][:200]}") from error
