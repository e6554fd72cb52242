"""Phrases that many messages share: numbers with their nouns, and how to install what is missing."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`, `1,000 entries`. noun: in the singular, a regular one; words before it stay as they are."""
    return f"{number:,} {noun if number == 1 else _plural(noun)}"


def install(extra: str) -> str:
    """How to add an optional part. PrivTune is on no package index, so it is installed from its checkout."""
    return f"pip install '.[{extra}]' in the checkout of PrivTune"


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "sh")) else f"{noun}s"
