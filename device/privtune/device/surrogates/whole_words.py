"""Listed words and phrases in a text, where they are whole: not inside a longer word or number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

_HEAD = re.compile(r"\w+|[^\w\s]")  # what a listed word begins with
_SEPARATORS = frozenset(".,")  # of digits


@dataclass(frozen=True, slots=True)
class Found:
    """A listed word in a text: text[start:end], listed as `word`."""

    start: int
    end: int
    word: str


class WholeWords:
    """Finds any of these, the longest first, in time linear in the text, however many they are.

    same: makes spellings equal that count as the same; it must keep the length. Listed words are in this form already.
    """

    def __init__(self, listed: Iterable[str], same: Callable[[str], str] = str) -> None:
        self._same = same
        self._by_head: dict[str, list[str]] = {}
        for word in sorted(listed, key=len, reverse=True):
            if head := _HEAD.match(word):
                self._by_head.setdefault(head[0], []).append(word)

    def find(self, text: str, start: int = 0, taken: bytes | bytearray = b"") -> Iterator[Found]:
        """From left to right without overlaps. start: what is before is context only. taken: nonzero where none is."""
        for head in _HEAD.finditer(text):
            if head.start() < start or not may_begin(text, head.start()):
                continue
            for word in self._by_head.get(self._same(head[0]), ()):
                end = head.start() + len(word)
                whole = self._same(text[head.start() : end]) == word and _may_end(text, end)
                if whole and not any(taken[head.start() : end]):
                    yield Found(head.start(), end, word)
                    start = end
                    break


def may_begin(text: str, at: int) -> bool:
    """Whether a word may begin here: not inside another, nor after the separator of a number's digits."""
    before = text[max(at - 2, 0) : at]
    number = text[at : at + 1].isdigit() and before[-1:] in _SEPARATORS and before[:-1].isdigit()
    return not in_word(before[-1:]) and not number


def _may_end(text: str, at: int) -> bool:
    after = text[at : at + 2]
    number = text[at - 1].isdigit() and after[:1] in _SEPARATORS and after[1:].isdigit()
    return not in_word(after[:1]) and not number


def in_word(letter: str) -> bool:
    """Whether a character is part of a word or number, accents of their own included; "" is none."""
    return letter.isalnum() or letter == "_" or (letter >= "\u0300" and unicodedata.category(letter)[0] == "M")
