"""Whether the cloud can take jobs: what `/readyz` says. Liveness (`/healthz`) is only that the process answers."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from privtune.shared.errors import CloudUnreachable, PrivTuneError, StorageFull

LEAST_FREE_BYTES = 256 << 20
KNOWN_S = 1.0  # probes need no key: however many come, the checks run once in this time
PATIENCE_S = 5.0  # for checks that another probe runs


class Readiness:
    """Runs checks for probes. Thread-safe. checks: each raises an error of the table where something is wrong."""

    def __init__(self, checks: Sequence[Callable[[], None]]) -> None:
        self._checks = checks
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._wrong: PrivTuneError | None = None

    def check(self) -> None:
        """Raises what is wrong as of the last second, CloudUnreachable where a check does not come back."""
        if not self._lock.acquire(timeout=PATIENCE_S):
            raise CloudUnreachable(f"its database or disk has not answered for {PATIENCE_S:.0f} s")
        try:
            if time.monotonic() - self._checked_at > KNOWN_S:
                self._wrong = self._look()
                self._checked_at = time.monotonic()
        finally:
            self._lock.release()
        if self._wrong is not None:
            raise self._wrong

    def _look(self) -> PrivTuneError | None:
        try:
            for check in self._checks:
                check()
        except PrivTuneError as error:
            return error
        return None


def check_disk(folder: Path) -> None:
    """Raises StorageFull for a data folder that can't be written, or hardly has room."""
    probe = folder / "ready.probe"
    try:
        probe.write_bytes(bytes(4096))
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageFull(f"its data folder can't be written: {error.strerror}", detail=str(error)) from error
    if free < LEAST_FREE_BYTES:
        raise StorageFull(f"its disk has {free >> 20} MiB left, less than {LEAST_FREE_BYTES >> 20}")
