"""Listed words and phrases in a text, where they are whole: not inside a longer word or number."""

from __future__ import annotations

import re
from collections.abc import Iterable


def bounded(listed: Iterable[str], *, ignore_case: bool = False) -> re.Pattern[str]:
    """A pattern for any of these, the longest first; digits after a separator belong to a number before it."""
    words = "|".join(map(_bounded, sorted(listed, key=len, reverse=True)))
    return re.compile(words, re.IGNORECASE if ignore_case else 0)


def _bounded(word: str) -> str:
    before = r"(?<!\w)(?<!\d[.,])" if word[0].isdigit() else r"(?<!\w)"
    after = r"(?!\w)(?![.,]\d)" if word[-1].isdigit() else r"(?!\w)"
    return before + re.escape(word) + after
