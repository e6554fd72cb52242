"""Puts the true words back in what the model writes, also while it is being written."""

from __future__ import annotations

import bisect
from collections.abc import Mapping

from privtune.device.surrogates.whole_words import WholeWords, may_begin

_LOOK_AHEAD = ".,"  # after a number, more digits may follow
_LOOK_BEHIND = 2  # characters that say whether a word begins inside another


class Restoring:
    """The forms of all surrogates. back: what each form stands for."""

    def __init__(self, back: Mapping[str, str]) -> None:
        self._back, self._words = back, WholeWords(back)
        self._sorted = sorted(back)
        self._longest = max(map(len, back), default=0)

    def sub(self, text: str, start: int = 0, end: int | None = None) -> str:
        """text[start:end] with every whole surrogate replaced; what is around it is context."""
        parts, at, end = [], start, len(text) if end is None else end
        for found in self._words.find(text, start):
            if found.start >= end:
                break
            parts += [text[at : found.start], self._back[found.word]]
            at = found.end
        return "".join(parts) + text[at:end]

    def open_from(self, text: str, start: int) -> int:
        """Where the end of a text begins that more text could make part of a surrogate, from start on."""
        within = {at for found in self._words.find(text, start) for at in range(found.start + 1, found.end)}
        for at in range(max(start, len(text) - self._longest - 1), len(text)):
            if at not in within and may_begin(text, at) and self._is_open(text[at:]):
                return at
        return len(text)

    def _is_open(self, rest: str) -> bool:
        place = bisect.bisect_left(self._sorted, rest)
        begins = place < len(self._sorted) and self._sorted[place].startswith(rest)
        return begins or (rest[-1] in _LOOK_AHEAD and rest[:-1] in self._back)


class Restorer:
    """One answer, piece by piece: what may still become a surrogate is held back."""

    def __init__(self, forms: Restoring) -> None:
        self._forms = forms
        self._text = ""  # as it came: what is held back, after its context
        self._given = 0  # the length of the context

    def push(self, piece: str) -> str:
        """The further text that is certain."""
        self._text += piece
        return self._give(self._forms.open_from(self._text, self._given))

    def finish(self) -> str:
        """What was held back; nothing follows it."""
        return self._give(len(self._text))

    def _give(self, end: int) -> str:
        certain = self._forms.sub(self._text, self._given, end)
        context = max(0, end - _LOOK_BEHIND)
        self._text, self._given = self._text[context:], end - context
        return certain
