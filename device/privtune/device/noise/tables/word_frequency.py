"""Public knowledge of how frequent each word is. U usable ids."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.noise.context import NoiseContext

FloatArray = NDArray[np.float64]

_FLOOR = 1e-8  # frequency of a word that no source knows
_TEXT_WEIGHT = 5 / 6  # the public text is small, but it is the domain


def frequencies(context: NoiseContext, place_V: NDArray[np.int64]) -> FloatArray:
    """Public relative frequency of each usable id, positive, summing to one; shape U.

    Five parts public text (if the owner named any) and one part language: `wordfreq` where it is installed, else Zipf's
    law over the order of the vocabulary, which tokenizers sort by frequency.

    place_V: place of each id among the usable ones, -1 for the others.
    """
    tokens = [context.tokens[i] for i in context.usable_ids.tolist()]
    known = _wordfreq(tokens)
    language = 1.0 / (np.arange(len(tokens)) + 10.0) if known is None else known
    language /= language.sum()
    counts = np.zeros(len(tokens))
    for row in context.public_rows:
        place = place_V[np.asarray(row, dtype=np.int64)]
        np.add.at(counts, place[place >= 0], 1.0)
    if counts.sum() > 0:
        language = _TEXT_WEIGHT * counts / counts.sum() + (1 - _TEXT_WEIGHT) * language
    positive: FloatArray = np.maximum(language, _FLOOR)
    positive /= positive.sum()
    return positive


def _surface(token: str) -> str:
    """The text of a token without its tokenizer's markers."""
    return token.removeprefix("##").lstrip("Ġ▁ ").removesuffix("</w>")


def _wordfreq(tokens: Sequence[str]) -> FloatArray | None:
    """English frequency of each token's text; None without the package. Word pieces count a tenth."""
    try:
        word_frequency: Any = import_module("wordfreq").word_frequency
    except ImportError:
        return None
    starts_marked = any(token.startswith(("Ġ", "▁")) for token in tokens)
    out = np.empty(len(tokens))
    for i, token in enumerate(tokens):
        piece = token.startswith("##") or (starts_marked and not token.startswith(("Ġ", "▁")))
        text = _surface(token)
        out[i] = max(_FLOOR, word_frequency(text, "en") if text else 0.0) * (0.1 if piece else 1.0)
        # Punctuation is as frequent as the commonest words, but word lists leave it out.
        if text and not any(ch.isalnum() for ch in text):
            out[i] = 1e-2 if text in ".,'" else 1e-4
    return out
