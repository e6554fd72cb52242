"""Keeps out of a command's process what transformers loads and a device never runs, and returns freed memory at once.

With torch 2.13 and transformers 5.24, on tiny models, the peak of `finetune`, with and without a tail, and of
`generate` falls from 440-465 MB to 330-360 MB: 70 MB are torch's compiler with sympy, 37 MB are scipy.
`tests/unit/device/runtime/test_memory.py` measures it and fails for other versions, to be measured again.

Whatever is left out, scipy and bitsandbytes excepted, is loaded by its first use.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
# glibc's mallopt: most arenas, and the size from which a block goes back to the system as soon as it is free.
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
_MOST = 32 << 20  # the largest threshold that glibc accepts
_LARGE = 64 << 10  # the size of a tail's buffers in training: a lower peak, at some cost of time

_frugal = False  # whether this process gives freed memory back at once


def keep_lean() -> None:
    """Leave out scipy, bitsandbytes, torch's compiler and distributed tensors, and give freed memory back at once."""
    if "transformers" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTransformers())


class _BeforeTransformers(MetaPathFinder):
    """Prepares the process when transformers is about to be imported, and not before: most commands never import it."""

    def find_spec(self, name: str, *_: Any) -> None:
        """Never finds anything."""
        if name == "transformers":
            sys.meta_path.remove(self)
            # transformers and peft import them where they are installed, for losses of object detection and for frozen
            # weights of few bits, which a device has none of. None: not installed.
            for name in ("scipy", "bitsandbytes"):
                sys.modules.setdefault(name, None)  # type: ignore[arg-type]
            _frugal_malloc()
            _postpone_compiler()


def _postpone_compiler() -> None:
    import torch

    # As in a torch built without it: distributed tensors import sympy and the compiler's symbolic shapes.
    torch.distributed.is_available = lambda: False
    spec = importlib.util.find_spec(COMPILER)
    if spec is not None and COMPILER not in sys.modules:
        sys.modules[COMPILER] = _Compiler(spec)


class _Compiler(ModuleType):
    """A stand-in for torch's compiler: its decorators do nothing; any other name loads the real module."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__path__, self.__file__ = spec, list(spec.submodule_search_locations or ()), spec.origin
        self.disable = self.allow_in_graph = self.assume_constant_result = _as_it_is
        self.graph_break = _nothing

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(name)
        if name == "config":  # gradient checkpointing reads a setting of it and needs nothing else
            return importlib.import_module(f"{COMPILER}.config")
        self.__class__ = ModuleType  # type: ignore[assignment]  # the module's own names are looked up from here on
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _as_it_is(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Callable[..., Any]:
    return _as_it_is if function is None else function  # `@mark` and `@mark(...)`


def _nothing(*_: Any, **__: Any) -> None:
    return None


@contextmanager
def fast_memory() -> Iterator[None]:
    """Keep freed memory for the next step: an audit's training is faster, and takes more memory.

    No effect in a process that was not made frugal.
    """
    if not _frugal:
        yield
        return
    for setting, value in ((_MMAP_THRESHOLD, _MOST), (_TRIM_THRESHOLD, 1 << 30)):
        _glibc("mallopt", setting, value)
    try:
        yield
    finally:
        _frugal_malloc()
        trim()


def trim() -> None:
    """Return to the system what large temporary objects have left in the heap. glibc only."""
    gc.collect()
    _glibc("malloc_trim", 0)


def _frugal_malloc() -> None:
    """One arena for all threads, and large buffers go back to the system when freed."""
    global _frugal
    _frugal = True
    for setting, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _LARGE)):
        _glibc("mallopt", setting, value)


def _glibc(name: str, *values: int) -> None:
    """Call a function of the C library that other systems lack."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*values)
