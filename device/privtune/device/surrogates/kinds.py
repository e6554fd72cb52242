"""What is found in a text: kinds of units, and how their case is kept."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Kind(StrEnum):
    """The public type of a replaced unit. Units of one kind are replaced by draws from one distribution."""

    GIVEN = "given name"
    FAMILY = "family name"
    ORGANISATION = "organisation"
    PLACE = "place"
    COUNTRY = "country"
    INITIALS = "initials"
    HANDLE = "user name"
    EMAIL = "e-mail address"
    URL = "web address"
    DATE = "date"
    MONTH = "month"
    YEAR = "year"
    NUMBER = "number"
    CODE = "code"
    RARE = "rare word"
    RARE_S = "rare word in -s"
    RARE_ED = "rare word in -ed"
    RARE_ING = "rare word in -ing"
    RARE_LY = "rare word in -ly"
    TERM = "the owner's term"


@dataclass(frozen=True, slots=True)
class Span:
    """A unit in a text: text[start:end]."""

    start: int
    end: int
    kind: Kind


Case = Literal["lower", "upper", "mixed"]


def case_of(surface: str) -> Case:
    """How a unit is written. A single capital is mixed: it may begin a name."""
    if surface == surface.lower():
        return "lower"
    if surface == surface.upper() and sum(letter.isalpha() for letter in surface) > 1:
        return "upper"
    return "mixed"


def folded(surface: str) -> str:
    """A unit in lower case, letter for letter: the result is as long, which `lower` alone does not promise."""
    return "".join(one if one == "İ" else one.lower() for one in surface) if "İ" in surface else surface.lower()


def in_case(written: str, case: Case) -> str:
    """A surrogate in the case of what it replaces, different for each case."""
    if case == "mixed" and written == written.lower():
        return written[:1].upper() + written[1:]
    if case == "mixed" and case_of(written) == "upper":
        return written.capitalize()
    return {"lower": written.lower(), "upper": written.upper(), "mixed": written}[case]


def rare_kind(word: str) -> Kind:
    """The kind of a rare word, by its ending, so that its surrogate fits the sentence."""
    for ending, kind in (("ing", Kind.RARE_ING), ("ed", Kind.RARE_ED), ("ly", Kind.RARE_LY), ("s", Kind.RARE_S)):
        if word.endswith(ending) and not word.endswith(("ss", "us", "is")):
            return kind
    return Kind.RARE
