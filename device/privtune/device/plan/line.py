"""A probe of the line to the cloud: half a megabyte each way, of bytes that say nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

from privtune.device.link.rest import ControlPlane

PROBE_BYTES = 1 << 19
_TIMES = 3
_LEAST_S = 1e-6


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line.

    up, down: bytes a second.
    round_trip: seconds.
    """

    up: float
    down: float
    round_trip: float


def probe_line(control: ControlPlane) -> Line:
    """The best of a few exchanges on one connection, as the job's one stream would do. Raises as `ControlPlane`."""
    control.exchange(0, 0)  # opens the connection
    round_trip = _fastest(control, 0, 0)

    def rate(up: int, down: int) -> float:
        return PROBE_BYTES / max(_fastest(control, up, down) - round_trip, _LEAST_S)

    return Line(up=rate(PROBE_BYTES, 0), down=rate(0, PROBE_BYTES), round_trip=round_trip)


def _fastest(control: ControlPlane, up: int, down: int) -> float:
    found = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        control.exchange(up, down)
        found.append(time.perf_counter() - began)
    return min(found)
