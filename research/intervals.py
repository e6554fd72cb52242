"""95% intervals of ROUGE and BLEU of generated texts, by the bootstrap over prompts.

Koehn 2004: prompts are resampled with replacement, the same ones for every run. The difference of two runs on the same
prompts then has an interval of its own, far narrower than those of the runs. `research.results` uses it.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import sacrebleu

from privtune.device.inference.text_scores import ROUGE, score_texts

RESAMPLES = 400
Scores = dict[str, tuple[float, float, float]]  # name -> (score, lowest, highest)


def intervals(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Scores]:
    """`answers` (text, references) of each run -> its scores, and those of "first - second" for each pair of runs."""
    (count,) = {len(answers) for answers in runs.values()}
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    picks = [np.arange(count), *drawn]
    values = {label: resampled(answers, picks) for label, answers in runs.items()}
    labels = list(runs)
    for number, first in enumerate(labels):
        for second in labels[number + 1 :]:
            if [one["prompt"] for one in runs[first]] == [one["prompt"] for one in runs[second]]:
                both = values[first].items()
                values[f"{first} - {second}"] = {name: value - values[second][name] for name, value in both}
    return {label: {name: summed(value) for name, value in scores.items()} for label, scores in values.items()}


def resampled(answers: list[dict[str, Any]], picks: list[npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.float64]]:
    """Each score on each pick of answers; the first pick is all of them."""
    alone = [score_texts([answer["text"]], [answer["references"]]) for answer in answers]
    found = {name: np.array([getattr(one, name) for one in alone]) for name in ROUGE}
    scores = {name: np.array([each[pick].mean() for pick in picks]) for name, each in found.items()}
    return scores | {"bleu": np.array([bleu([answers[index] for index in pick]) for pick in picks])}


def bleu(answers: list[dict[str, Any]]) -> float:
    """BLEU of a corpus. It is no mean of single scores, so every pick computes it again."""
    references = list(zip_longest(*(answer["references"] for answer in answers)))
    return float(sacrebleu.BLEU().corpus_score([answer["text"] for answer in answers], references).score)


def summed(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """The score, and the bounds of 95% of the resampled ones."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)
