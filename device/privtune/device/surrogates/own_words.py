"""What became of a record's own words: which were replaced, by what, and which stay. An audit looks for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from privtune.device.surrogates.lexicon import Lexicon
from privtune.device.surrogates.surrogate_map import Piece

_WORD = re.compile(r"\w+")
Words = frozenset[str]


@dataclass(frozen=True, slots=True)
class OwnWords:
    """Words of one record, as they are written.

    units: of each place where something was replaced, the words there and those of the surrogate.
    clear: words that stay.
    names: those of `units` that say the same wherever they are: no single characters, no common words (Street).
    """

    units: tuple[tuple[Words, Words], ...]
    clear: Words
    names: Words

    @classmethod
    def of(cls, pieces: Iterable[Piece], lexicon: Lexicon) -> OwnWords:
        """Of all texts of a record, in pieces."""
        units: list[tuple[Words, Words]] = []
        clear: set[str] = set()
        for piece in pieces:
            words = _words(piece.text)
            if piece.surrogate is None:
                clear |= words
            else:
                units.append((words, _words(piece.surrogate)))
        names = frozenset(word for words, _ in units for word in words if _is_telling(word, lexicon))
        return cls(units=tuple(units), clear=frozenset(clear), names=names)


def names_in_clear(records: Sequence[OwnWords]) -> list[Words]:
    """Of each record, the names that stay in it and are replaced somewhere in these records, written alike."""
    replaced = frozenset[str]().union(*(record.names for record in records))
    return [record.clear & replaced for record in records]


def _words(text: str) -> Words:
    return frozenset(_WORD.findall(text))


def _is_telling(word: str, lexicon: Lexicon) -> bool:
    plain = word.lower()
    if len(plain) == 1:
        return False
    common = lexicon.is_everyday(plain) or lexicon.is_dictionary_word(plain)
    return not common or lexicon.is_name(plain, capital=not word.islower())
