"""Finds what has a format: dates, phone numbers, codes, addresses in streets, numbers of two digits and more."""

from __future__ import annotations

import re
from collections.abc import Iterator

from privtune.device.surrogates.closed_words import CLOSED
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
_PLATE = re.compile(r"(?<!\w)[A-ZÄÖÜ]{1,3}-[A-Z]{1,2}[ -]?\d{1,4}(?!\w)", re.IGNORECASE)
_POSTCODE = re.compile(r"(?<!\w)[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}(?!\w)", re.IGNORECASE)
_IBAN = re.compile(
    r"(?<!\w)[A-Z]{2}\d\d ?(?:[A-Z]{4} ?)?\d{4}(?: ?\d{4}){1,6}(?: ?(?=[A-Z]{0,3}\d)[A-Z\d]{1,4})?(?!\w)", re.IGNORECASE
)
# Groups of letters beside groups with digits, as plates and codes have them, and what is no such group.
_GROUP = re.compile(r"(?<![\w.,])[^\W_]{0,4}\d[^\W_]{0,9}(?!\w)")
_BEFORE, _AFTER = re.compile(r"(?<![\w'’])([^\W\d_]{1,3})[ -]$"), re.compile(r"[ -]([^\W\d_]{1,3})(?![\w'’])")
_NEXT = re.compile(r"[ -]([^\W_]*\d[^\W_]*)(?!\w)")
_MEASURES = frozenset(  # after a number
    """
    km kg cm mm mg ml lb lbs oz ft min sec hr hrs am pm gb mb tb kb mph usd eur gbp chf mhz ghz kw kwh bc ad ce pts pp
    nd rd th st x
    """.split()  # noqa: SIM905  # a list of one word a line would be a page
)
_BEFORE_NUMBERS = frozenset("usd eur gbp chf tel fax no nr pp vol ch fig iso".split())  # noqa: SIM905
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
        r"(?<!\w)(\d+),?\s+(?:bis,?\s+)?((?:[Rr]ue|[Aa]venue|[Bb]oulevard|[Pp]lace|[Cc]hemin|[Ii]mpasse|[Qq]uai"
        r"|[Aa]llée|"
        r"[Cc]ours|[Rr]oute)\s+(?:(?:de|du|des|la|le|les)\s+|[ld]['’])*[A-ZÀ-Ý][^\W\d_]*(?:[- ][A-ZÀ-Ý][^\W\d_]*){0,2})"
    ),
    re.compile(
        r"(?<!\w)(\d+),?\s+(?:bis,?\s+)?((?:rue|avenue|boulevard|impasse)\s+(?:(?:de|du|des|la|le|les)\s+|[ld]['’])*"
        r"[^\W\d_]+)"
    ),
    re.compile(  # a number after a name
        r"(?<!\w)(?P<name>(?:[A-ZÄÖÜ][^\W\d_]+[ -]){0,2}[^\W\d_]*(?:[Ss]tra(?:ß|ss)e|[Ss]tr\.|[Gg]asse|[Ww]eg|[Pp]latz|"
        r"[Aa]llee|[Rr]ing|[Dd]amm|[Uu]fer))\s+(?P<number>\d+[a-z]?)(?!\w)"
    ),
    re.compile(
        r"(?<!\w)(?P<name>(?:Am|Im|Zum|Zur|(?:An|In|Auf|Bei|Hinter|Unter|Vor) (?:der|dem"
        r"|den))(?: [A-ZÄÖÜ][^\W\d_]+){1,2})"
        r"\s+(?P<number>\d{1,3}[a-z]?)(?!\w|[.:]\d| Uhr| \d)"
    ),
    re.compile(
        r"(?<!\w)(?P<name>(?:Ul\.|ul\.|Via|Viale|Piazza|Plaza|[Cc]alle|[Rr]ua|Avenida|Av\.|Paseo|Carrer|Jalan"
        r"|Corso|[Rr]ue|"
        r"Avenue|Boulevard) (?:(?:de|del|della|da|do|dos|la|los) )*[^\W\d_]+(?: [A-ZÀ-Ý][^\W\d_]+){0,2}),?\s+"
        r"(?P<number>\d+[a-z]?)(?!\w)"
    ),
)
_STREET_NUMBER = re.compile(
    rf"(?<!\w)((?:[^\W\d_]+[.'’-]?\s+){{1,3}}(?:{_STREET_WORDS})),?\s+(\d{{1,4}}[a-z]?)(?![\w:]|[.,]\d)", re.IGNORECASE
)
_TOWN = re.compile(r",? (?:[A-Z]{0,2}\d[\w-]*(?: \d[A-Z]{2}|\d[A-Z]\d)?,? )?([^\W\d_]{2,})", re.IGNORECASE)
_DOOR = re.compile(r"(?<!\w)(?:flat|apt|apartment|suite|unit|room|ward|bed|box|nr)\b\.?\s*#?(\d+[a-z]?)(?!\w)", re.I)
_HOUSE = re.compile(r"(?<!\w)\d(?=,? [A-Z][^\W\d_])")  # before a name
_LONGEST_GROUP = 3  # letters
_IBAN_DIGITS = 9  # at least, and one more
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
        self._month_of_year = re.compile(rf"(?<!\w)(?:{months})(?=\.?,? (?:19|20)\d\d(?!\w))", re.IGNORECASE)

    def find(self, text: str) -> Iterator[Span]:
        """The surest first; they may overlap."""
        if not any(letter.isdigit() for letter in text):
            return
        yield from _spans(_PHONE, text, Kind.CODE)
        yield from (span for span in _spans(_IBAN, text, Kind.CODE) if _digits(text, span) > _IBAN_DIGITS)
        yield from _spans(_DATE, text, Kind.DATE)
        for pattern in self._days:
            for match in pattern.finditer(text):
                yield Span(*match.span("month"), Kind.MONTH)
                yield Span(*match.span("day"), Kind.NUMBER)
        yield from _spans(self._month_of_year, text, Kind.MONTH)
        yield from self._addresses(text)
        codes = [span for span in _spans(_CODE, text, Kind.CODE) if self._is_code(text[span.start : span.end])]
        yield from (span for span in codes if self._is_of_groups(text[span.start : span.end]))
        yield from _spans(_HOUSE, text, Kind.NUMBER)
        yield from (span for span in _spans(_MEASURE, text, Kind.NUMBER) if _digits(text, span) > 1)
        yield from _spans(_YEAR, text, Kind.YEAR)
        plates = [
            plate for plate in _PLATE.finditer(text) if not CLOSED.intersection(re.split("[- ]", plate[0].lower()))
        ]
        yield from (Span(*plate.span(), Kind.CODE) for plate in plates)
        yield from _spans(_POSTCODE, text, Kind.CODE)
        yield from codes
        yield from self._groups(text)
        yield from (span for span in _spans(_NUMBER, text, Kind.NUMBER) if _digits(text, span) > 1)

    def _addresses(self, text: str) -> Iterator[Span]:
        for pattern in _STREETS:
            for match in pattern.finditer(text):
                number, name = ("number", "name") if pattern.groupindex else (1, 2)
                words = _LETTERS.findall(match[name])[:-1]  # "2 people on the road" is no address, "2 The Row" is one
                if pattern is not _STREETS[0] or not CLOSED.intersection(words):
                    yield Span(*match.span(name), Kind.PLACE)
                    yield _house(match, number)
                    yield from self._town(text, match.end())
        yield from (_house(match, 1) for match in _DOOR.finditer(text))
        for match in _STREET_NUMBER.finditer(text):
            street, before = match[1].split()[-1], match[1].split()[-2]
            if street[0].islower() and before[0].isupper():
                continue  # "Tata Consultancy close 16 higher"
            if (start := self._street_start(match)) < match.start(1) + len(match[1].rsplit(maxsplit=1)[0]):
                yield Span(start, match.end(1), Kind.PLACE)
                yield _house(match, 2)
                yield from self._town(text, match.end())

    def _town(self, text: str, end: int) -> Iterator[Span]:
        """The town behind a street, with its postcode between them."""
        if match := _TOWN.match(text, end):
            plain = match[1].lower()
            listed = plain in self._lexicon.towns or (match[1][0].isupper() and not self._lexicon.is_everyday(plain))
            if listed and plain not in CLOSED:
                yield Span(*match.span(1), Kind.PLACE)

    def _street_start(self, match: re.Match[str]) -> int:
        """Where the name begins: after the last word of the sentence before it."""
        capital = match[1].split()[-1][0].isupper() and not match[1].isupper()
        start = match.start(1)
        for word in list(_LETTERS.finditer(match.string, match.start(1), match.end(1)))[:-1]:
            if word[0].lower() in CLOSED or (capital and word[0].islower()):
                start = word.end() + 1
        return start

    def _groups(self, text: str) -> Iterator[Span]:
        """Letters beside digits: AB 1234 C. In lower case, and if they are a word, only on both sides."""
        for match in _GROUP.finditer(text):
            before = _BEFORE.search(text, max(0, match.start() - 5), match.start())
            after = _AFTER.match(text, match.end())
            both = [before] if before and self._is_group(before[1], _BEFORE_NUMBERS) else []
            both += [after] if after and self._is_group(after[1], _MEASURES) else []
            for one in both:
                alone = one[1].isupper() and one[1] not in "AI" and not self._lexicon.is_everyday(one[1].lower())
                if len(both) > 1 or alone or (len(one[1]) == 1 and one[1].isupper() and one[1] not in "AI"):
                    yield Span(*one.span(1), Kind.CODE)
                    if not match[0].isdigit() and not _MEASURE.fullmatch(match[0]):
                        yield Span(*match.span(), Kind.CODE)
            following = _NEXT.match(text, match.end())
            if following and self._is_mixed(match[0]) and self._is_mixed(following[1]):
                yield Span(*match.span(), Kind.CODE)
                yield Span(*following.span(1), Kind.CODE)

    def _is_group(self, letters: str, words: frozenset[str]) -> bool:
        plain = letters.lower()
        common = self._lexicon.is_everyday(plain) and len(plain) > 1 and letters.islower()
        return plain not in words and (plain not in CLOSED or len(plain) == 1) and not common

    def _is_of_groups(self, written: str) -> bool:
        """Several short groups of letters, which a measure or a number could take to pieces."""
        letters = _LETTERS.findall(written)
        return len(letters) > 1 and all(len(one) <= _LONGEST_GROUP for one in letters)

    def _is_mixed(self, written: str) -> bool:
        """Letters and digits, and neither a measure nor a common word."""
        common = self._lexicon.rank(written.lower()) < self._rank
        return not (written.isdigit() or common or _MEASURE.fullmatch(written))

    def _is_code(self, written: str) -> bool:
        """Letters with digits, but not a common word with a single one, like person1 or mp3."""
        letters, digits = _LETTERS.findall(written), sum(letter.isdigit() for letter in written)
        if not letters or not digits:
            return False
        common = self._lexicon.rank(written.lower()) < self._rank
        everyday = all(self._lexicon.is_everyday(one.lower()) for one in letters)
        if _MEASURE.fullmatch(written):
            return False
        return digits > 1 or not (common or (everyday and len(letters) == 1))


def _spans(pattern: re.Pattern[str], text: str, kind: Kind) -> Iterator[Span]:
    return (Span(match.start(), match.end(), kind) for match in pattern.finditer(text))


def _house(match: re.Match[str], group: str | int) -> Span:
    return Span(*match.span(group), Kind.NUMBER if match[group].isdigit() else Kind.CODE)


def _digits(text: str, span: Span) -> int:
    """A single digit identifies nobody."""
    return sum(letter.isdigit() for letter in text[span.start : span.end])
