"""Puts the true words back in what the model writes, also while it is being written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from privtune.device.surrogates.whole_words import bounded

_LOOK_AHEAD = ".,"  # after a number, more digits may follow


@dataclass(frozen=True)
class Restoring:
    """The forms of all surrogates, and what they stand for."""

    back: Mapping[str, str]
    pattern: re.Pattern[str] | None
    longest: int

    def sub(self, text: str) -> str:
        """The text with every whole surrogate replaced."""
        return self.pattern.sub(lambda match: self.back[match[0]], text) if self.pattern else text

    def open_from(self, text: str) -> int:
        """Where the end of a text begins that more text could make part of a surrogate."""
        for start in range(max(0, len(text) - self.longest - 1), len(text)):
            rest = text[start:]
            bare = rest[:-1] if rest[-1] in _LOOK_AHEAD else rest
            if any(form.startswith(rest) or form == bare for form in self.back):
                return start
        return len(text)


def restoring(back: Mapping[str, str]) -> Restoring:
    """back: what each form of a surrogate stands for."""
    if not back:
        return Restoring(back, None, 0)
    return Restoring(back, bounded(back), max(map(len, back)))


class Restorer:
    """One answer, piece by piece: what may still become a surrogate is held back."""

    def __init__(self, forms: Restoring) -> None:
        self._forms = forms
        self._held = ""
        self._before = ""  # the last characters that were given out, as they came: a word may not begin inside another

    def push(self, piece: str) -> str:
        """The further text that is certain."""
        self._held += piece
        return self._give(self._forms.open_from(self._held))

    def finish(self) -> str:
        """What was held back; nothing follows it."""
        return self._give(len(self._held))

    def _give(self, end: int) -> str:
        raw, self._held = self._held[:end], self._held[end:]
        text = self._before + raw
        kept = len(self._forms.sub(self._before))
        self._before, given = text[-2:], self._forms.sub(text)[kept:]
        return given
