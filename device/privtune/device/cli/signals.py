"""Signals: the first Ctrl-C pauses training after the current step, the second ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PAUSED = 130
TERMINATED = 128 + signal.SIGTERM  # as shells have it


@contextmanager
def pausing(stop: threading.Event, say: Callable[[str], None]) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `stop`; SIGINT again ends the process with exit code 130."""

    def on_signal(number: int, _: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            sys.stderr.write("\nEnded at once; the job resumes from its last checkpoint.\n")
            sys.stderr.flush()
            os._exit(PAUSED)  # gRPC's threads would otherwise keep the process alive
        if not stop.is_set():
            stop.set()
            say("Pausing after this step; press Ctrl-C again to end at once.")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM end the process by an exception, so that half-written files are removed on the way out."""

    def on_signal(number: int, _: FrameType | None) -> None:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
