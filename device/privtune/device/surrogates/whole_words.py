"""Listed words and phrases in a text, where they are whole: not inside a longer word or number."""

from __future__ import annotations

import re
from collections.abc import Iterable

BEFORE, AFTER = r"(?<!\w)(?<!\d[.,])", r"(?!\w)(?![.,]\d)"


def bounded(listed: Iterable[str], *, ignore_case: bool = False) -> re.Pattern[str]:
    """A pattern for any of these, the longest first."""
    words = "|".join(re.escape(word) for word in sorted(listed, key=len, reverse=True))
    return re.compile(f"{BEFORE}(?:{words}){AFTER}", re.IGNORECASE if ignore_case else 0)
