"""Finds what has a format: dates, phone numbers, codes, addresses in streets, numbers of two digits and more."""

from __future__ import annotations

import re
from collections.abc import Iterator

from privtune.device.surrogates.kinds import Kind, Span
from privtune.device.surrogates.lexicon import Lexicon

_PHONE = re.compile(r"(?<![\w+])\+\d[\d ().\-/]{5,}\d(?!\w)")
_DATE = re.compile(r"(?<!\w)(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})(?!\w)")
_YEAR = re.compile(r"(?<![\w.,/-])(?:19|20)\d\d(?![\w/-])(?![.,]\d)")
_NUMBER = re.compile(r"(?<!\w)\d(?:[\d.,:/-]*\d)?(?!\w)")
_MEASURE = re.compile(
    r"(?<!\w)\d[\d.,]{0,20}(?:st|nd|rd|th|s|am|pm|[kcm]?m|[km]?g|lbs?|oz|ft|mph|k|[kmgt]b|[kmg]?hz|h|hrs?|min)(?!\w)",
    re.IGNORECASE,
)
_PLATE = re.compile(r"(?<!\w)[A-ZÄÖÜ]{1,3}-[A-Z]{1,2}[ -]?\d{1,4}(?!\w)")
_POSTCODE = re.compile(r"(?<!\w)[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}(?!\w)")
_CODE = re.compile(r"[^\W_]+(?:[-_./][^\W_]+)*")
_LETTERS = re.compile(r"[^\W\d_]+")

# Numbers and names of streets, however short and common: the number in group 1, the name in group 2.
_STREET_WORDS = (
    "street|st|road|rd|avenue|ave|lane|ln|way|drive|dr|court|ct|close|square|sq|terrace|place|pl|boulevard|blvd|crescent|"
    "row|mews|gardens|highway|hwy|parkway|alley"
)
_STREETS = (
    re.compile(rf"(?<!\w)(\d+[a-z]?),?\s+((?:[^\W\d_]+[.'’-]?\s+){{1,3}}(?:{_STREET_WORDS}))(?!\w)", re.IGNORECASE),
    re.compile(
        r"(?<!\w)(\d+),?\s+(?:bis,?\s+)?((?:[Rr]ue|[Aa]venue|[Bb]oulevard|[Pp]lace|[Cc]hemin|[Ii]mpasse|[Qq]uai|[Aa]llée|"
        r"[Cc]ours|[Rr]oute)\s+(?:(?:de|du|des|la|le|les)\s+|[ld]['’])*[A-ZÀ-Ý][^\W\d_]*(?:[- ][A-ZÀ-Ý][^\W\d_]*){0,2})"
    ),
    re.compile(  # a number after a name
        r"(?<!\w)(?P<name>(?:[A-ZÄÖÜ][^\W\d_]+[ -]){0,2}[^\W\d_]*(?:[Ss]tra(?:ß|ss)e|[Ss]tr\.|[Gg]asse|[Ww]eg|[Pp]latz|"
        r"[Aa]llee|[Rr]ing|[Dd]amm|[Uu]fer))\s+(?P<number>\d+[a-z]?)(?!\w)"
    ),
)
_DOOR = re.compile(r"(?<!\w)(?:flat|apt|apartment|suite|unit|room|ward|bed|box|nr)\b\.?\s*#?(\d+[a-z]?)(?!\w)", re.I)
_HOUSE = re.compile(r"(?<!\w)\d(?=,? [A-Z][^\W\d_])")  # before a name
_SHORT = 3  # letters of an abbreviated month


class Formats:
    """Finds the formats of a language. everyday: whether a word in lower case is too common for a name."""

    def __init__(self, lexicon: Lexicon, rank: int) -> None:
        self._lexicon, self._rank = lexicon, rank
        short = {month[:_SHORT] for month in lexicon.months} | {"sept"}
        months = "|".join(sorted({*lexicon.months, *short}, key=len, reverse=True))
        day = r"(?P<day>\d{1,2}(?:st|nd|rd|th|er)?)\.?"
        self._days = tuple(
            re.compile(rf"(?<!\w){pattern}(?!\w)", re.IGNORECASE)
            for pattern in (rf"{day}(?:\s+(?:of|de))?[\s-]+(?P<month>{months})", rf"(?P<month>{months})\.?\s+{day}")
        )

    def find(self, text: str) -> Iterator[Span]:
        """The surest first; they may overlap."""
        if not any(letter.isdigit() for letter in text):
            return
        yield from _spans(_PHONE, text, Kind.CODE)
        yield from _spans(_DATE, text, Kind.DATE)
        for pattern in self._days:
            for match in pattern.finditer(text):
                yield Span(*match.span("month"), Kind.MONTH)
                yield Span(*match.span("day"), Kind.NUMBER)
        yield from self._addresses(text)
        yield from _spans(_HOUSE, text, Kind.NUMBER)
        yield from (span for span in _spans(_MEASURE, text, Kind.NUMBER) if _digits(text, span) > 1)
        yield from _spans(_YEAR, text, Kind.YEAR)
        yield from _spans(_PLATE, text, Kind.CODE)
        yield from _spans(_POSTCODE, text, Kind.CODE)
        yield from (span for span in _spans(_CODE, text, Kind.CODE) if self._is_code(text[span.start : span.end]))
        yield from (span for span in _spans(_NUMBER, text, Kind.NUMBER) if _digits(text, span) > 1)

    def _addresses(self, text: str) -> Iterator[Span]:
        for pattern in _STREETS:
            for match in pattern.finditer(text):
                number, name = ("number", "name") if pattern.groupindex else (1, 2)
                words = _LETTERS.findall(match[name])[:-1]  # "2 people on the road" is no address, "2 The Row" is one
                if pattern is not _STREETS[0] or not self._lexicon.function_words.intersection(words):
                    yield Span(*match.span(name), Kind.PLACE)
                    yield _house(match, number)
        yield from (_house(match, 1) for match in _DOOR.finditer(text))

    def _is_code(self, written: str) -> bool:
        """Letters with digits, but not a common word with a single one, like person1 or mp3."""
        letters, digits = _LETTERS.findall(written), sum(letter.isdigit() for letter in written)
        if not letters or not digits:
            return False
        common = self._lexicon.rank(written.lower()) < self._rank
        everyday = all(self._lexicon.is_everyday(one.lower()) for one in letters)
        return digits > 1 or not (common or everyday)


def _spans(pattern: re.Pattern[str], text: str, kind: Kind) -> Iterator[Span]:
    return (Span(match.start(), match.end(), kind) for match in pattern.finditer(text))


def _house(match: re.Match[str], group: str | int) -> Span:
    return Span(*match.span(group), Kind.NUMBER if match[group].isdigit() else Kind.CODE)


def _digits(text: str, span: Span) -> int:
    """A single digit identifies nobody."""
    return sum(letter.isdigit() for letter in text[span.start : span.end])
