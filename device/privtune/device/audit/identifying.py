"""Whether words that surrogates replaced are in what an attack names: the owner's own check of them.

B records, N secret tokens, K guesses each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.audit.observed import Seen
from privtune.device.data.records import Record, Records
from privtune.device.surrogates.surrogates import texts_of

NAME = "your own words among what the cloud reads"
FIGURE = "replaced"  # of an attack; its floor is the share that guesses for another record have, by chance
_WORD = re.compile(r"\w+")
Words = frozenset[str]


def replaced_words(own: Records, sent: Records) -> list[Words]:
    """Of each record the words, in lower case, that are in the owner's text and not in the text that was sent."""
    return [_words(_text(mine)) - _words(_text(theirs)) for mine, theirs in zip(own, sent, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """The words of the attacked records that were replaced before the model read them.

    words: of each attacked record, from `replaced_words`.
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
    return frozenset(_WORD.findall(text.lower()))
