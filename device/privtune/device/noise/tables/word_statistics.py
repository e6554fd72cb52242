"""Public knowledge of words: how frequent each is, and which class of a task it speaks for.

U usable ids, C classes. Where a source is private, it is noised before it comes here (`noise.tables.private_counts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.noise.context import NoiseContext

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_FLOOR = 1e-8  # frequency of a word that no source knows
_TEXT_WEIGHT = 5 / 6  # the public text is small, but it is the domain


def frequencies(context: NoiseContext, place_V: IntArray) -> FloatArray:
    """Public relative frequency of each usable id, positive, summing to one.

    Five parts of the public text (if the owner named one), one part of the language: `wordfreq` where it is
    installed, else a Zipf law over the order of the vocabulary, which tokenizers sort by frequency.
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


def surface(token: str) -> str:
    """The text of a token without its tokenizer's marks."""
    return token.removeprefix("##").lstrip("Ġ▁ ").removesuffix("</w>")


def _wordfreq(tokens: Sequence[str]) -> FloatArray | None:
    """English frequency of each token's text; None without the package. Pieces of words count a tenth."""
    try:
        word_frequency: Any = import_module("wordfreq").word_frequency
    except ImportError:
        return None
    starts_marked = any(token.startswith(("Ġ", "▁")) for token in tokens)
    out = np.empty(len(tokens))
    for i, token in enumerate(tokens):
        piece = token.startswith("##") or (starts_marked and not token.startswith(("Ġ", "▁")))
        text = surface(token)
        out[i] = max(_FLOOR, word_frequency(text, "en") if text else 0.0) * (0.1 if piece else 1.0)
        # Punctuation is as frequent as the commonest words, and no word list has it.
        if text and not any(ch.isalnum() for ch in text):
            out[i] = 1e-2 if text in ".,'" else 1e-4
    return out


def public_counts(context: NoiseContext, place_V: IntArray) -> FloatArray:
    """counts_CU: in how many public labelled texts of each class an id occurs; a lexicon is a list of short texts."""
    classes = sorted(set(context.labels))
    counts_CU = np.zeros((len(classes), len(context.usable_ids)))
    for row, label in zip(context.labelled_rows, context.labels, strict=True):
        place = np.unique(place_V[np.asarray(row, dtype=np.int64)])
        counts_CU[classes.index(label), place[place >= 0]] += 1
    return counts_CU


def speaking_groups(counts_CU: FloatArray, noise_variance: float = 0.0, *, significance: float) -> IntArray:
    """Group of each id: 0 says nothing of the class; 1 + c where class c is over-represented among its texts.

    An id of n texts is expected in n * share_c texts of class c, with variance n * share_c * (1 - share_c), plus
    `noise_variance` where the counts are noised; it speaks for its most over-represented class if that is more than
    `significance` standard deviations above.
    """
    total_C = counts_CU.sum(axis=1)
    if len(total_C) < 2 or total_C.min() <= 0:
        return np.zeros(counts_CU.shape[1], dtype=np.int64)
    share_C1 = (total_C / total_C.sum())[:, None]
    seen_U = counts_CU.sum(axis=0).clip(min=0)
    variance_CU = seen_U * share_C1 * (1 - share_C1) + noise_variance
    z_CU = (counts_CU - seen_U * share_C1) / np.sqrt(variance_CU + 1e-12)
    groups: IntArray = np.where(z_CU.max(axis=0) > significance, 1 + z_CU.argmax(axis=0), 0).astype(np.int64)
    return groups
