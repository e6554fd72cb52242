"""Spans of time as a person types them."""

from __future__ import annotations

import re

from privtune.shared.errors import InvalidInput

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FORM = re.compile(r"^(\d{1,9})([smhd])$", re.ASCII)


def seconds(text: str, param: str) -> int:
    """The seconds of a span like 90d, 12h, 30m or 45s. Raises InvalidInput, which names `--{param}`."""
    match = _FORM.match(text.strip())
    if match is None:
        raise InvalidInput(f"--{param} is a number of days, hours, minutes or seconds like 90d, not {text!r}.")
    return int(match[1]) * _SECONDS[match[2]]
