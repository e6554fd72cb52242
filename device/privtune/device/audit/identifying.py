"""Whether words that surrogates replaced are in what an attack names: the owner's own check of them.

B records, T tokens, N secret tokens, K guesses each.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.audit.observed import Seen
from privtune.device.data.encode import EncodedDataset
from privtune.device.data.records import Record, Records
from privtune.device.surrogates.own_words import OwnWords, Words, names_in_clear
from privtune.device.surrogates.surrogates import texts_of

NAME = "your own words among what the cloud reads"
FIGURE = "replaced"  # of an attack; its floor is the share that guesses for another record have, by chance
_WORD = re.compile(r"\w+")


def replaced_words(own: Records, sent: Records) -> list[Words]:
    """Of each record the words that are in the owner's text and not in the text that was sent."""
    return [_words(_text(mine)) - _words(_text(theirs)) for mine, theirs in zip(own, sent, strict=True)]


def hidden_words(own: Sequence[OwnWords], data: EncodedDataset, longest: int, tokenizer: Any) -> list[Words]:
    """Of each record of `data`, the words in what leaves of it that an attack must not name.

    They are the words that were replaced, unless the record has them in clear as well; and names that it has in clear,
    written as in a place where they were replaced, be it in another record: the cloud reads them here.

    Args:
        own: of each record of the file; empty without surrogates.
        data: some or all of them, encoded.
        longest: tokens of a record at most; the rest never leaves.
        tokenizer: the model's.
    """
    if not own:
        return []
    names = names_in_clear(own)
    return [
        _hidden(own[place], names[place], None if len(ids_T) < longest else _words(tokenizer.decode(ids_T.tolist())))
        for place, ids_T in zip(data.places, data.ids, strict=True)
    ]


def _hidden(own: OwnWords, names: Words, leaves: Words | None) -> Words:
    """names: of those in clear. leaves: the words of the text that leaves; None for all of it."""
    units = [(_folded(mine), _folded(theirs)) for mine, theirs in own.units]
    clear, names = _folded(own.clear), _folded(names)
    if leaves is not None:
        units = [(mine, theirs) for mine, theirs in units if theirs & leaves]
        clear, names = clear & leaves, names & leaves
    sent = clear.union(*(theirs for _, theirs in units))
    return names.union(*(mine - sent for mine, _ in units))


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """The words of the attacked records that an attack must not name.

    words: of each attacked record, from `hidden_words`.
    tokenizer: the model's; it makes words of guesses.
    """

    words: Sequence[Words]
    tokenizer: Any

    def counts(self, ids_NK: Tensor, seen: Seen) -> NDArray[np.float64]:
        """(B, 3): the words in the record's first guesses, in those for another record on average, and all of them."""
        best_N = ids_NK[:, 0]
        read = [
            _words(self.tokenizer.decode([one for one in best_N[seen.record_N == place].tolist() if one >= 0]))
            for place in range(len(seen))
        ]
        times = Counter(word for mine in read for word in mine)
        others = max(len(read) - 1, 1)
        pairs = list(zip(self.words, read, strict=False))  # slow attacks run on the first records
        named_B = [len(words & mine) for words, mine in pairs]
        chance_B = [sum(times[word] - (word in mine) for word in words) / others for words, mine in pairs]
        return np.array([named_B, chance_B, [len(words) for words, _ in pairs]], dtype=np.float64).T


def _text(record: Record) -> str:
    return "\n".join(texts_of(record))


def _words(text: str) -> Words:
    return frozenset(_WORD.findall(_plain(text)))


def _folded(words: Words) -> Words:
    return frozenset(map(_plain, words))


def _plain(text: str) -> str:
    """In lower case and without accents, as a model that knows neither writes it."""
    letters = unicodedata.normalize("NFKD", text.lower())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
