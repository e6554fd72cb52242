"""Made-up texts in the words of the tiny models, with something in them to learn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.support.tiny_models import VOCAB

TEXTS = ["w5 w6 w7 w50", "w51 w52", "w1 w40 w41 w42 w43 w44"]


def write_sentences(path: Path, count: int, seed: int = 0) -> Path:
    """Sentences of random words; the label says whether more words of the upper half of the vocabulary occur."""
    rng = np.random.default_rng(seed)
    rows = ["sentence\tlabel"]
    for _ in range(count):
        words = rng.integers(0, VOCAB - 4, rng.integers(3, 12))
        label = "high" if (words >= (VOCAB - 4) // 2).mean() > 0.5 else "low"
        rows.append(" ".join(f"w{word}" for word in words) + f"\t{label}")
    path.write_text("\n".join(rows) + "\n")
    return path


def token_rows(count: int, seed: int) -> list[np.ndarray]:
    """Rows of ids in which each word makes some next words likely; the first words of the vocabulary are frequent."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, VOCAB - 3)
    rows = []
    for _ in range(count):
        words = [int(rng.choice(VOCAB - 4, p=frequency / frequency.sum()))]
        for _ in range(int(rng.integers(4, 12))):
            follows = (words[-1] * 7 + 3) % (VOCAB - 4)
            words.append(follows if rng.random() < 0.5 else int(rng.choice(VOCAB - 4, p=frequency / frequency.sum())))
        rows.append(np.array([2, *(w + 4 for w in words), 3], dtype=np.int32))
    return rows


def half_labels(rows: list[np.ndarray]) -> np.ndarray:
    """A label for each of `token_rows`: whether more of its words are of the upper half of the vocabulary."""
    return np.array([int(np.median(ids_T[1:-1]) >= 12) for ids_T in rows])


def topic_row(rng: np.random.Generator) -> str:
    """A CSV row of a text of 8 words and its class; in class 1 about half of them are of other words."""
    label = int(rng.integers(2))
    words = rng.integers(0, 30, size=8) + 25 * label * (rng.random(8) < 0.5)
    return " ".join(f"w{word}" for word in words) + f",{label}"


def write_rows(path: Path, rows: Iterable[str]) -> Path:
    """A CSV file of such rows."""
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path
