"""Whether words that surrogates replaced are in what the cloud can read: the owner's own check of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.channels import Finding, share_of
from privtune.device.audit.attacks.codebook import Codebook, CodebookSettings
from privtune.device.audit.observed import Observed
from privtune.device.data.records import Record, Records
from privtune.device.surrogates.surrogates import texts_of

NAME = "your own words among what the cloud reads"
_WORD = re.compile(r"\w+")
Words = frozenset[str]


def replaced_words(own: Records, sent: Records) -> list[Words]:
    """Of each record the words, in lower case, that are in the owner's text and not in the text that was sent."""
    return [_words(_text(mine)) - _words(_text(theirs)) for mine, theirs in zip(own, sent, strict=True)]


def identifying_words(lab: Lab, observed: Observed, hidden: Sequence[Words], tokenizer: Any) -> list[Finding]:
    """The nearest prototype of every row, as text, searched for the words that were replaced.

    Args:
        lab: of the attacker.
        observed: releases of the attacked records.
        hidden: of each attacked record, from `replaced_words`.
        tokenizer: the model's.

    Returns nothing where nothing was replaced. The floor is how many of a record's words are in another record's text.
    """
    attack = Codebook("adaptive", CodebookSettings(metric="euclidean"))
    attack.fit(lab)
    ids_N = attack.attack(observed.seen)[:, 0]
    read = [
        _words(tokenizer.decode([one for one in ids_N[observed.seen.record_N == place].tolist() if one >= 0]))
        for place in range(len(hidden))
    ]
    found, elsewhere = _found(hidden, read), _found(hidden, [*read[1:], *read[:1]])
    if not len(found):
        return []
    text = (
        f"{len(found):,} words of these records were replaced before the model read them. Found are those in what the "
        "nearest prototypes of the record's own vectors spell; the floor are those in another record's, by chance. All "
        "other words of the text leave readable."
    )
    return [Finding(name=NAME, figure=share_of(found, float(elsewhere.mean())), text=text)]


def _found(hidden: Sequence[Words], read: Sequence[Words]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    pairs = zip(hidden, read, strict=True)
    return np.array([word in there for words, there in pairs for word in sorted(words)], dtype=np.bool_)


def _text(record: Record) -> str:
    return "\n".join(texts_of(record))


def _words(text: str) -> Words:
    return frozenset(_WORD.findall(text.lower()))
