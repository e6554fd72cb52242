"""Numbers, sizes and times as people read them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """`812 B`, `3.4 MB`: powers of 1000."""
    for unit in _UNITS:
        if abs(count) < 999.5 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def number(value: float) -> str:
    """Three significant digits, with thousands grouped: `0.0412`, `3.14`, `12,300`."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 20 min`, `5 days`."""
    seconds = max(0, round(seconds))
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest and hours < 12 else f"{hours} h"
    return f"{round(hours / 24)} days"


def ago(at: float | None, now: float | None = None) -> str:
    """`7 min ago`, or `in 3 h` for what is to come; `never` for None."""
    if at is None:
        return "never"
    since = (time.time() if now is None else now) - at
    if abs(since) < 2:
        return "just now"
    return f"{duration(since)} ago" if since > 0 else f"in {duration(-since)}"


def moment(at: float) -> str:
    """`2026-11-30 15:04:05 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(at: float) -> str:
    """For the attribute `datetime` of `<time>`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
