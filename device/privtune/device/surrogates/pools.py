"""Surrogates of each kind: draws from public lists or formats, independent of the word that they replace."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Sequence

from privtune.device.surrogates.kinds import Kind, rare_kind
from privtune.device.surrogates.lexicon import Lexicon

Choose = Callable[[int], int]  # a number below its argument, uniform

_COMPANIES = ("Group", "Partners", "Holdings", "Industries", "Media", "Systems", "Foundation", "Labs", "Logistics")
_MAIL_HOSTS = ("mailbox", "postbox", "inbox", "webmail", "letterbox", "fastpost")
_YEARS = (1940, 100)  # the first, and how many
_INITIALS = "BCDEFGHJKLMNOPRSTVWY"  # not A and I, which are words
_ENDINGS = ("com", "net", "org")
_ORDINAL = re.compile(r"(?<!\d)(\d+)(st|nd|rd|th|er)$", re.IGNORECASE)
_RARE_FROM, _RARE_TO = 10_000, 50_000  # ranks of the surrogates of rare words
_SHORTEST = 4  # letters of a rare word


class Pools:
    """The lists of one language, and draws from them."""

    def __init__(self, lexicon: Lexicon) -> None:
        from faker.providers.person.en_US import Provider as Persons

        self._given = tuple(dict.fromkeys(Persons.first_names))
        self._family = tuple(dict.fromkeys(Persons.last_names))
        self._months = lexicon.months
        self._countries = _countries()
        rare: dict[Kind, list[str]] = {}
        for word in lexicon.by_rank[_RARE_FROM:_RARE_TO]:  # they have few tokens and fit many sentences
            if len(word) >= _SHORTEST and lexicon.is_dictionary_word(word):
                rare.setdefault(rare_kind(word), []).append(word)
        self._rare = {kind: tuple(words) for kind, words in rare.items()}

    def draw(self, kind: Kind, surface: str, choose: Choose, longer: int = 0) -> str:
        """A surrogate in mixed case. Of the surface, only the shape of numbers, dates and codes is looked at.

        longer: by so many digits or words than usual, for when shorter ones run out.
        """
        if kind in (Kind.NUMBER, Kind.CODE):
            if kind is Kind.NUMBER and sum(map(str.isdigit, surface)) == 1:
                longer += 1  # an answer may well hold a digit of its own ("2 rooms"), which would be taken for this one
            return _shaped("0" * longer + surface, choose, letters=kind is Kind.CODE)
        drawn = "".join(self._one(kind, surface, choose) for _ in range(1 + longer))
        return drawn if longer == 0 or not drawn.isalpha() else drawn.capitalize()

    def _one(self, kind: Kind, surface: str, choose: Choose) -> str:
        if kind is Kind.INITIALS:
            return re.sub(r"[^\W\d_]", lambda _: _one_of(_INITIALS, choose), surface)
        if kind is Kind.YEAR:
            return str(_YEARS[0] + choose(_YEARS[1]))
        if kind is Kind.DATE:
            return _date(surface, choose)
        if kind in self._rare:
            return _one_of(self._rare[kind], choose)
        return self._named(kind, choose)

    def _named(self, kind: Kind, choose: Choose) -> str:
        given, family = _one_of(self._given, choose), _one_of(self._family, choose)
        if kind is Kind.GIVEN:
            return given
        if kind is Kind.ORGANISATION:
            return f"{family} {_one_of(_COMPANIES, choose)}"
        if kind is Kind.PLACE:
            return _city(given, family, choose)
        if kind is Kind.COUNTRY:
            return _one_of(self._countries, choose)
        if kind is Kind.MONTH:
            return _one_of(self._months, choose)
        if kind is Kind.EMAIL:
            host = f"{_one_of(_MAIL_HOSTS, choose)}.{_one_of(_ENDINGS, choose)}"
            return f"{given}.{family}{10 + choose(90)}@{host}".lower()
        if kind is Kind.HANDLE:
            return f"{given}{10 + choose(90)}_{family}".lower()  # not a digit at the end, which others may follow
        if kind is Kind.URL:
            return f"www.{given}-{family}.{_one_of(_ENDINGS, choose)}".lower()
        return family  # family names, the owner's terms, rare words of a kind that has no list


def _one_of(listed: Sequence[str], choose: Choose) -> str:
    return listed[choose(len(listed))]


def _city(given: str, family: str, choose: Choose) -> str:
    from faker.providers.address.en_US import Provider as Addresses

    ending = _one_of(Addresses.city_suffixes, choose)
    name = family if choose(2) else given
    return f"{_one_of(Addresses.city_prefixes, choose)} {name}" if choose(2) else f"{name}{ending}"


@functools.cache
def _countries() -> tuple[str, ...]:
    from faker.providers.address.en import Provider as Addresses

    return tuple(name for name in Addresses.countries if name.replace(" ", "").isalpha())


def _shaped(surface: str, choose: Choose, *, letters: bool) -> str:
    """Random digits in the places of digits, and letters of letters; a number does not begin with zero."""
    drawn: list[str] = []
    for old in surface:
        if old.isdigit():
            drawn.append(str(choose(10)) if letters or drawn else str(1 + choose(9)))
        elif letters and old.isalpha():
            drawn.append((string.ascii_uppercase if old.isupper() else string.ascii_lowercase)[choose(26)])
        else:
            drawn.append(old)
    return "".join(drawn) if letters else _ORDINAL.sub(_ordinal, "".join(drawn))


def _ordinal(drawn: re.Match[str]) -> str:
    """With the ending of the drawn number: that of the true one tells its last digit."""
    number, ending = drawn.groups()
    if ending == "er":  # French
        return number + ("er" if number == "1" else "e")
    teen = number[-2:-1] == "1"
    return number + ("th" if teen else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th"))


def _date(surface: str, choose: Choose) -> str:
    """A random day in the format of a numeric date: which group is the year, and which may be a month."""
    small = [1 + choose(12), 1 + choose(28)]  # a month may be read as a day, and a day above 12 never as a month

    def drawn(group: re.Match[str]) -> str:
        if len(group[0]) == 4:
            return str(_YEARS[0] + choose(_YEARS[1]))
        return str(small.pop(0) if small else choose(100)).zfill(len(group[0]))

    return re.sub(r"\d+", drawn, surface)
