"""Records in which every unit that identifies is known: carrier sentences with planted names, numbers and addresses.

A file NAME is `NAME.carriers` (sentences) and `NAME.fills.toml` (what is planted in them). The rules of the product are
improved on `dev`, and in a last round on `test`; no miss of `test2` has been shown to whoever writes them. `test3` was
written by somebody who had not read the rules, and no rule has been written after seeing it or its misses. No two files
share a sentence, a name, a place, an organisation or a street.
"""

from __future__ import annotations

import datetime
import random
import re
import tomllib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PART = re.compile(r"\{\{|\}\}|\{(\w+)\}")
_INNER = re.compile(r"\{(\w+)\}")
_NAMES = ("given", "family")
_MONTHS = {
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split(),  # noqa: SIM905
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split(),  # noqa: SIM905
}


@dataclass(frozen=True)
class Unit:
    """A planted unit: text[start:end] of its record."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Planted:
    """A record. carrier: the number of its sentence."""

    text: str
    style: str
    language: str
    carrier: int
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Carrier:
    """A sentence with braces, and how it is written."""

    text: str
    style: str
    language: str
    case: Callable[[str], str]


def plant(name: str, repeat: int, listed: Callable[[str], bool] = lambda word: False) -> list[Planted]:
    """Every carrier of a file, `repeat` times with other units.

    listed: whether the code knows a name from a list; such given and family names are not planted in English.
    """
    folder = Path(__file__).parent
    fills = tomllib.loads((folder / f"{name}.fills.toml").read_text("utf-8"))
    for kind in _NAMES:
        fills[kind] = [one for one in fills[kind] if not listed(one.lower())]
    draw = random.Random(name)
    carriers = read_carriers(folder / f"{name}.carriers")
    return [
        _fill(carrier, number, Fills(fills, carrier.language, draw))
        for _ in range(repeat)
        for number, carrier in enumerate(carriers)
    ]


def read_carriers(path: Path) -> list[Carrier]:
    """The sentences of a file."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("## "):
            style, *rest = line.removeprefix("## ").split()
            language = next((word for word in rest if len(word) == 2), "en")
            case = str.lower if "lower" in rest else str.upper if "upper" in rest else str
        elif line and not line.startswith("#!"):
            found.append(Carrier(line.replace("\\n", "\n"), style, language, case))
    return found


def _fill(carrier: Carrier, number: int, fills: Fills) -> Planted:
    text, units, at = "", [], 0
    for match in _PART.finditer(carrier.text):
        text += carrier.case(carrier.text[at : match.start()])
        at = match.end()
        if match[1] is None:
            text += match[0][0]
            continue
        for kind, written in fills.units(match[1]):
            if kind:
                units.append(Unit(kind, len(text), len(text) + len(carrier.case(written))))
            text += carrier.case(written)
    text += carrier.case(carrier.text[at:])
    return Planted(text, carrier.style, carrier.language, number, tuple(units))


class Fills:
    """The units of one record: the same brace has the same unit wherever it stands."""

    def __init__(self, fills: dict[str, list[str]], language: str, draw: random.Random) -> None:
        self._fills, self._language, self._draw = fills, language, draw
        self._drawn: dict[str, str] = {}

    def units(self, brace: str) -> list[tuple[str, str]]:
        """Kind and text of each part; the kind is empty for what is between two units."""
        kind, which = re.fullmatch(r"([a-z_]+?)(\d*)", brace).groups()  # type: ignore[union-attr]
        if kind == "name":
            return [("given", self.one("given", which)), ("", " "), ("family", self.one("family", which))]
        return [(kind, self.one(kind, which))]

    def one(self, kind: str, which: str = "") -> str:
        """The unit of a kind; `which` tells two of them apart."""
        if kind + which not in self._drawn:
            self._drawn[kind + which] = self._make(kind, which)
        return self._drawn[kind + which]

    def _make(self, kind: str, which: str) -> str:
        if kind == "iban":
            return iban(self._draw)
        if kind == "card":
            return card(self._draw)
        if kind == "year":
            return str(self._draw.randint(1935, 2024))
        listed = self._fills.get(f"{kind}_{self._language}") or self._fills[kind]
        taken = {value for drawn, value in self._drawn.items() if drawn.rstrip("0123456789") == kind}
        pattern = self._draw.choice([one for one in listed if one not in taken] or listed)
        if kind.startswith("date"):
            return self._date(pattern)
        inner = {"g": lambda: plain(self.one("given", which)), "f": lambda: plain(self.one("family", which))}
        inner["o"] = lambda: plain(self.one("org", which))
        written = _INNER.sub(lambda match: inner.get(match[1], lambda: self.one(match[1], which))(), pattern)
        return written if kind in (*_NAMES, "org", "place", "common", "initials") else self._digits(written, kind)

    def _date(self, pattern: str) -> str:
        day = datetime.date(1940, 1, 1) + datetime.timedelta(self._draw.randrange(31_000))
        month = _MONTHS[self._language][day.month - 1] if "{month}" in pattern else ""
        return day.strftime(pattern.replace("{month}", month))

    def _digits(self, pattern: str, kind: str) -> str:
        first = True
        out = ""
        for letter in pattern:
            if letter == "0":
                out += self._draw.choice("123456789" if first else "0123456789")
                first = False
            elif letter == "Z" and kind == "phone":
                out += "0"
            elif letter == "A" and kind in ("code", "plate", "zip"):
                out += self._draw.choice("BCDFGHJKLMNPRSTVWX")
            else:
                out += letter
                first = True
        return out


def plain(text: str) -> str:
    """A name as addresses write it."""
    bare = unicodedata.normalize("NFKD", text.replace("ł", "l").replace("Þ", "Th").replace("ð", "d").replace("ø", "o"))
    return "".join(letter for letter in bare.lower() if letter.isascii() and letter.isalnum())


def iban(draw: random.Random) -> str:
    """A valid German, French-like or British number, with or without spaces."""
    country, bank = draw.choice([("DE", ""), ("GB", "WEST"), ("NL", "ABNA")])
    length = {"DE": 18, "GB": 14, "NL": 10}[country]
    body = bank + "".join(draw.choice("0123456789") for _ in range(length))
    digits = "".join(str(int(letter, 36)) for letter in body + country + "00")
    whole = f"{country}{98 - int(digits) % 97:02d}{body}"
    return draw.choice([whole, " ".join(whole[at : at + 4] for at in range(0, len(whole), 4))])


def card(draw: random.Random) -> str:
    """A valid card number of 16 digits."""
    digits = [int(draw.choice("45")), *(draw.randrange(10) for _ in range(14))]
    doubled = [digit * 2 - 9 * (digit > 4) if place % 2 == 0 else digit for place, digit in enumerate(digits)]
    whole = "".join(map(str, digits)) + str(-sum(doubled) % 10)
    between = draw.choice(["", " ", "-"])
    return between.join(whole[at : at + 4] for at in range(0, 16, 4))


def as_json(record: Planted) -> dict[str, Any]:
    """A line for whoever wants the file."""
    return {"text": record.text, "units": [(unit.kind, record.text[unit.start : unit.end]) for unit in record.units]}
