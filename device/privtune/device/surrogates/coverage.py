"""How much of a text was replaced, and how much of it leaves as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from privtune.device.surrogates.finder import WORD

if TYPE_CHECKING:
    from privtune.device.surrogates.lexicon import Lexicon
    from privtune.device.surrogates.surrogate_map import Piece


@dataclass(frozen=True)
class Coverage:
    """Counts over texts.

    words: words, and units that are none (numbers, addresses).
    replaced: those that were replaced.
    content: words that carry content, with all that was replaced.
    clear: content words that leave as they are.
    kinds: units that were replaced, by kind.
    """

    words: int = 0
    replaced: int = 0
    content: int = 0
    clear: int = 0
    kinds: dict[str, int] = field(default_factory=dict)  # no Counter: `asdict` can't copy one

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            words=self.words + other.words,
            replaced=self.replaced + other.replaced,
            content=self.content + other.content,
            clear=self.clear + other.clear,
            kinds=dict(Counter(self.kinds) + Counter(other.kinds)),
        )

    @property
    def share_replaced(self) -> float:
        """Of all words."""
        return self.replaced / max(self.words, 1)

    @property
    def share_content_clear(self) -> float:
        """Of the content words."""
        return self.clear / max(self.content, 1)


def coverage_of(pieces: Iterable[Piece], lexicon: Lexicon) -> Coverage:
    """The counts of one text."""
    words = replaced = content = clear = 0
    kinds: Counter[str] = Counter()
    for piece in pieces:
        found = WORD.findall(piece.text)
        if piece.kind is not None:
            size = max(len(found), 1)
            words, replaced, content = words + size, replaced + size, content + size
            kinds[piece.kind.value] += 1
            continue
        meaning = sum(lexicon.is_content(word) for word in found)
        words, content, clear = words + len(found), content + meaning, clear + meaning
    return Coverage(words=words, replaced=replaced, content=content, clear=clear, kinds=dict(kinds))
