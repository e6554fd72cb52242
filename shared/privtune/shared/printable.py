"""Makes text of the other side safe to show: no control character of it reaches a terminal or a log."""

from __future__ import annotations

import unicodedata
from typing import TypeVar

T = TypeVar("T")


def printable(text: str) -> str:
    """The text as one line without control characters, for a terminal."""
    return "".join(_shown(char) for char in text).strip()


def printable_json(value: T) -> T:
    """A JSON value in which every text, name of a field or not, has spaces in place of control characters."""
    if isinstance(value, str):
        return "".join(_shown(char) for char in value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {printable_json(key): printable_json(item) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [printable_json(item) for item in value]  # type: ignore[return-value]
    return value


def escaped(text: str) -> str:
    """The text with `\\x1b` and the like for control characters, so that a log line keeps what was there."""
    return "".join(char if _is_shown(char) else ascii(char)[1:-1] for char in text)


def _shown(char: str) -> str:
    return char if _is_shown(char) else " "


def _is_shown(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"
