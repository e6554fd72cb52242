"""Cuts long texts for recognisers whose time grows faster than the text, where no unit is likely to be cut."""

from __future__ import annotations

import re
from collections.abc import Iterator

_LONG = 1_000  # characters from which a window ends at the next end of a sentence or line
_LONGEST = 2_000  # from which it ends at the next space
_RUN = 200  # characters without a space: what is longer is no text, and is cut anywhere
_PIECE = re.compile(rf"\S{{1,{_RUN}}}\s{{0,{_RUN}}}|\s{{1,{_RUN}}}")
_SPACE = re.compile(r"\s")
_SENTENCE_END = re.compile(r"[.!?;:]\W*\s$|\n\s*$")


def windows(text: str) -> Iterator[tuple[int, int]]:
    """Starts and ends, in order, without gaps; of a short text, the whole."""
    start = 0
    for piece in _PIECE.finditer(text):
        size = piece.end() - start
        in_run = piece.end() - piece.start() == _RUN and not piece[0][-1].isspace()
        if in_run or size > _LONGEST or (size > _LONG and _SENTENCE_END.search(piece[0])):
            yield start, piece.end()
            start = piece.end()
    if start < len(text) or not text:
        yield start, len(text)


def end_of_run(text: str, end: int) -> int:
    """Where the characters without a space that go on across `end` stop."""
    space = _SPACE.search(text, end)
    return space.start() if space else len(text)
