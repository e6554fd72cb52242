"""Whether records about the same person, place or number are recognised as such by the surrogates that they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from privtune.device.audit.attacks.channels import Finding, share_of
from privtune.device.audit.identifying import replaced_words
from privtune.device.data.records import Records
from privtune.device.surrogates.own_words import Words

NAME = "records about the same linked by a surrogate"
_PAIRS = 300


def linked_records(own: Records, sent: Records, redraw: Callable[[Records], Records]) -> list[Finding]:
    """Pairs of records that held the same replaced word, and how many share a word that surrogates brought in.

    The attacker links whatever shares such a word. The floor is chance: the same pairs, one record of each drawn anew
    under another secret (months and first names meet now and then). Nothing where no two records held the same word.

    Args:
        own: the owner's records.
        sent: the same, replaced.
        redraw: replaces some of the owner's records under another secret.
    """
    hidden, shown = replaced_words(own, sent), replaced_words(sent, own)
    pairs = sorted(set(_related(hidden)))
    pairs = [pairs[place] for place in np.random.default_rng(0).permutation(len(pairs))[:_PAIRS]]
    if not pairs:
        return []
    seconds = sorted({other for _, other in pairs})
    again = replace(own, items=tuple(own[place] for place in seconds))
    anew = dict(zip(seconds, replaced_words(redraw(again), again), strict=True))
    linked = np.array([bool(shown[one] & shown[other]) for one, other in pairs])
    by_chance = np.array([bool(shown[one] & anew[other]) for one, other in pairs])
    text = (
        f"{len(pairs):,} pairs of records held the same replaced word. A surrogate drawn once for all records would "
        "link each pair; one drawn anew for each record links no more than chance, the floor."
    )
    return [Finding(name=NAME, figure=share_of(linked, float(by_chance.mean())), text=text)]


def _related(hidden: Sequence[Words]) -> Iterator[tuple[int, int]]:
    """Neighbours among the records of each word: as many pairs as there are occurrences."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, words in enumerate(hidden):
        for word in words:
            places[word].append(place)
    for found in places.values():
        yield from pairwise(found)
