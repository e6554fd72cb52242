"""Finds what identifies in a text: formats, entities, capitals, names in lower case, rare words and the owner's terms.

In doubt a word is replaced: a word too many costs the model a little, a word too few costs the owner his secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from privtune.device.surrogates.kinds import Kind, Span, rare_kind
from privtune.device.surrogates.lexicon import Lexicon
from privtune.device.surrogates.pools import MONTHS
from privtune.device.surrogates.recognisers import Recognised, Recognisers

WORD = re.compile(r"(?<![^\W_])(?:(?:[A-Z]\.){2,}|[^\W\d_]+(?:['’][^\W\d_]+)*(?![^\W_]))")
_CAMEL = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_DATE = re.compile(r"(?<!\w)(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})(?!\w)")
_YEAR = re.compile(r"(?<![\w.,/-])(?:19|20)\d\d(?![\w/-])(?![.,]\d)")
_NUMBER = re.compile(r"(?<![\w])\d(?:[\d.,:/-]*\d)?(?!\w)")
_MEASURE = re.compile(
    r"(?<!\w)\d[\d.,]*(?:st|nd|rd|th|s|am|pm|[kcm]?m|[km]?g|lbs?|oz|ft|mph|k|[kmgt]b|[kmg]?hz|h|hrs?|min)(?!\w)",
    re.IGNORECASE,
)
_CODE = re.compile(r"[^\W_]+(?:[-_./][^\W_]+)*")
_LETTERS = re.compile(r"[^\W\d_]+")
_STREET = re.compile(r"(?<!\w)\d(?=,?\s+[A-Z])")  # a house number before a name, however short
_BEGINS = re.compile(r"(?:^|[.!?:;\n•*>|\"“”‘…—–]|\s-)\W*$")  # what is before the first word of a sentence

# Capitalised inside a sentence, and nobody's name: days, titles, abbreviations.
_CAPITALISED = frozenset(
    """
    i monday tuesday wednesday thursday friday saturday sunday mr mrs ms miss madam sir dr doctor prof professor captain
    president aunt uncle mom mum dad mother father grandma grandpa ok tv dvd cd pc usb id faq ceo cfo cto hr pr it ai am
    pm ad bc god christmas easter internet english
    """.split()  # noqa: SIM905  # a list of one word a line would be a page
)
_MONTHS = frozenset(month.lower() for month in MONTHS)
_POSSESSIVE = re.compile(r"['’]s$|['’]$")
_TITLE_CASE = 0.6  # of a text's words: above it a capital says nothing
_EVERYDAY = 3_000  # words this frequent make no name in lower case; in an entity they may surround one


class Finder:
    """Finds the spans of a text. own_terms: words and phrases that the owner names; found in any case."""

    def __init__(self, lexicon: Lexicon, recognisers: Recognisers, rank: int, own_terms: Sequence[str] = ()) -> None:
        self._lexicon, self._recognisers, self._rank = lexicon, recognisers, rank
        terms = sorted((re.escape(term) for term in own_terms), key=len, reverse=True)
        self._own = re.compile(rf"(?<!\w)(?:{'|'.join(terms)})(?!\w)", re.IGNORECASE) if terms else None

    def find(self, texts: Sequence[str]) -> Iterator[list[Span]]:
        """The spans of each text, in order, without overlaps."""
        for text, recognised in zip(texts, self._recognisers.read(texts), strict=True):
            taken = bytearray(len(text))
            yield sorted(self._free(self._candidates(text, recognised), taken), key=lambda span: span.start)

    @staticmethod
    def _free(candidates: Iterable[Span], taken: bytearray) -> Iterator[Span]:
        """The candidates that no surer one overlaps."""
        for span in candidates:
            if span.end > span.start and not any(taken[span.start : span.end]):
                taken[span.start : span.end] = b"\1" * (span.end - span.start)
                yield span

    def _candidates(self, text: str, recognised: Recognised) -> Iterator[Span]:
        """All that may be replaced, the surest first."""
        if self._own is not None:
            yield from (Span(match.start(), match.end(), Kind.TERM) for match in self._own.finditer(text))
        yield from recognised.formats
        yield from self._numbers(text)
        for entity in recognised.entities:
            yield from self._entity(text, entity)
        yield from self._words(text, recognised.proper)

    def _entity(self, text: str, entity: Span) -> Iterator[Span]:
        """A person's names one by one, anything else as one unit; without what only surrounds it."""
        words = [match for match in WORD.finditer(text, entity.start, entity.end) if self._names(match[0])]
        if words and entity.kind is Kind.FAMILY and self._only_begins(text, words[0]):
            words = words[1:]
        if not words:
            return
        if entity.kind is not Kind.FAMILY:
            start, end = words[0].start(), words[-1].end()
            end -= _possessive(text[start:end])
            whole = text[start:end]
            kind = Kind.COUNTRY if whole.lower() in self._lexicon.countries else entity.kind
            yield Span(start, end, kind)
            return
        for place, match in enumerate(words):
            yield _unit(match, self._name_kind(match[0], place, len(words)))

    def _names(self, word: str) -> bool:
        """Whether a word of an entity belongs to the name: a capital, or no everyday word."""
        plain = word.lower()
        if plain in _CAPITALISED or plain in _MONTHS or plain in self._lexicon.function_words:
            return False
        return word[0].isupper() or self._lexicon.rank(plain) >= _EVERYDAY or self._lexicon.is_name(plain)

    def _name_kind(self, word: str, place: int, of: int) -> Kind:
        """The first of several is a given name and the last a family name; others by the public lists."""
        if of > 1 and place in (0, of - 1):
            return Kind.GIVEN if place == 0 else Kind.FAMILY
        return Kind.GIVEN if word.lower() in self._lexicon.given else Kind.FAMILY

    def _words(self, text: str, proper: frozenset[int]) -> Iterator[Span]:
        matches = list(WORD.finditer(text))
        capitals = sum(match[0][0].isupper() for match in matches)
        telling = capitals <= _TITLE_CASE * len(matches) or len(matches) < 4
        for match in matches:
            yield from self._word(text, match, telling=telling, proper=match.start() in proper)

    def _word(self, text: str, match: re.Match[str], *, telling: bool, proper: bool) -> Iterator[Span]:
        word = match[0]
        bare = word[: len(word) - _possessive(word)]
        plain = bare.lower()
        if len(bare) == 1 or plain in _CAPITALISED:
            return
        capital = self._is_capital_name(text, match, bare, telling, proper)
        if plain in self._lexicon.function_words and not (
            capital and (plain in _MONTHS or self._lexicon.is_listed(plain))
        ):
            return
        if plain in _MONTHS and bare[0].isupper():
            yield _unit(match, Kind.MONTH)
        elif capital or self._lexicon.is_name(plain):
            yield _unit(match, self._capital_kind(plain))
        elif self._lexicon.rank(plain) >= self._rank and not self._common_parts(bare):
            yield _unit(match, rare_kind(plain))

    def _is_capital_name(self, text: str, match: re.Match[str], bare: str, telling: bool, proper: bool) -> bool:
        """A capital inside a sentence is a name; at its beginning and in headlines the part of speech decides."""
        if not bare[0].isupper():
            return False
        if proper:
            return not self._only_begins(text, match)
        shouted = bare.isupper() and self._lexicon.rank(bare.lower()) < self._rank
        return telling and not shouted and not _begins(text, match)

    def _only_begins(self, text: str, match: re.Match[str]) -> bool:
        """An everyday word that is no listed name, with the capital of a sentence's beginning."""
        return self._is_everyday(match[0].lower()) and _begins(text, match)

    def _is_everyday(self, plain: str) -> bool:
        return self._lexicon.rank(plain) < _EVERYDAY and not self._lexicon.is_listed(plain)

    def _capital_kind(self, plain: str) -> Kind:
        lexicon = self._lexicon
        if plain in lexicon.countries:
            return Kind.COUNTRY
        if plain in lexicon.given:
            return Kind.GIVEN
        return Kind.PLACE if plain in lexicon.places and plain not in lexicon.family else Kind.FAMILY

    def _common_parts(self, bare: str) -> bool:
        """Whether a word in camelCase is put together from common words, as names of fields are."""
        parts = _CAMEL.findall(bare)
        return (
            len(parts) > 1 and bare[0].islower() and all(self._lexicon.rank(one.lower()) < self._rank for one in parts)
        )

    def _numbers(self, text: str) -> Iterator[Span]:
        """Dates, codes of letters and digits, numbers of two digits or more, house numbers."""
        if not any(letter.isdigit() for letter in text):
            return
        yield from _spans(_DATE, text, Kind.DATE)
        yield from (span for span in _spans(_MEASURE, text, Kind.NUMBER) if _digits(text, span) > 1)
        yield from _spans(_YEAR, text, Kind.YEAR)
        yield from (span for span in _spans(_CODE, text, Kind.CODE) if self._is_code(text[span.start : span.end]))
        yield from (span for span in _spans(_NUMBER, text, Kind.NUMBER) if _digits(text, span) > 1)
        yield from _spans(_STREET, text, Kind.NUMBER)

    def _is_code(self, written: str) -> bool:
        """Letters with digits, but not a common word with a single one, like person1 or mp3."""
        letters, digits = _LETTERS.findall(written), sum(letter.isdigit() for letter in written)
        if not letters or not digits:
            return False
        common = self._lexicon.rank(written.lower()) < self._rank
        plain = all(self._is_everyday(one.lower()) for one in letters)
        return digits > 1 or not (common or plain)


def _begins(text: str, match: re.Match[str]) -> bool:
    return _BEGINS.search(text, max(0, match.start() - 8), match.start()) is not None


def _unit(match: re.Match[str], kind: Kind) -> Span:
    return Span(match.start(), match.end() - _possessive(match[0]), kind)


def _possessive(word: str) -> int:
    found = _POSSESSIVE.search(word)
    return len(found[0]) if found else 0


def _spans(pattern: re.Pattern[str], text: str, kind: Kind) -> Iterator[Span]:
    return (Span(match.start(), match.end(), kind) for match in pattern.finditer(text))


def _digits(text: str, span: Span) -> int:
    """A single digit identifies nobody."""
    return sum(letter.isdigit() for letter in text[span.start : span.end])
