"""Figures of merit of an attack, with intervals, and the score of a guess without any signal.

N secret tokens, K guesses each, B records, V candidates, S slots of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.identifying import FIGURE, Hidden
from privtune.device.audit.lengths_only import lengths_only
from privtune.device.audit.observed import Observed, Seen

TOPS = (1, 5, 10)
_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A share between 0 and 1 with its 95% interval (bootstrap over records, pooled over seeds) and its floor.

    language_floor: the share that a bigram model names from lengths alone; None if it does not apply.
    """

    value: float
    low: float
    high: float
    floor: float
    language_floor: float | None = None


def hits(ids_NK: Tensor, observed: Observed) -> Tensor:
    """bool (N, len(TOPS)): whether each token is among the first 1, 5, 10 guesses of its row.

    If a row stands for several tokens, their order does not count: the guesses of all its slots are pooled, in the
    attacker's favour.
    """
    seen = observed.seen
    guess_RSK = torch.full((len(seen.y_RD), seen.slots, max(TOPS)), -1, dtype=torch.int64)
    width = min(ids_NK.shape[1], max(TOPS))
    guess_RSK[seen.row_N, seen.slot_N, :width] = ids_NK[:, :width]
    right_NSK = guess_RSK[seen.row_N] == observed.ids_N[:, None, None]
    return torch.stack([right_NSK[:, :, :top].flatten(1).any(1) for top in TOPS], dim=1)


def spread(ranked_NK: Tensor, seen: Seen) -> Tensor:
    """Deal a row's one ranked list to its slots: slot s of S gets the guesses s, S + s, 2S + s, ...

    For attacks that rank a row's tokens as a set. Missing candidates become -1.
    """
    if seen.slots == 1:
        return ranked_NK[:, : max(TOPS)]
    wanted_NK = torch.arange(max(TOPS)) * seen.slots + seen.slot_N.unsqueeze(1)
    width = ranked_NK.shape[1]
    return torch.where(wanted_NK < width, ranked_NK.gather(1, wanted_NK.clamp(max=width - 1)), -1)


def rouge_l(guess: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """F1 of the longest common subsequence of two id sequences (Lin 2004)."""
    if not len(guess) or not len(truth):
        return 0.0
    row = np.zeros(len(truth) + 1, dtype=np.int64)
    for token in guess:
        extended = np.maximum(row[1:], row[:-1] + (truth == token))
        row = np.concatenate([[0], np.maximum.accumulate(extended)])
    common = int(row[-1])
    return 2 * common / (len(guess) + len(truth))


class InversionScore:
    """Adds up the guesses for releases of the same records, one draw after another.

    hidden: the records' words that were replaced before the model read them; None if there are none.
    """

    def __init__(self, public: PublicText, hidden: Hidden | None = None) -> None:
        self._frequent, self._public, self._hidden = public.frequent_ids, public, hidden
        self._lengths_only = lengths_only(public)
        self._rows: list[NDArray[np.float64]] = []

    def add(self, ids_NK: Tensor, observed: Observed) -> None:
        """Add the guesses for one draw of the releases."""
        record_N, count = observed.seen.record_N, len(observed.seen)
        hit_N3 = hits(ids_NK, observed).double()
        content_N = (~torch.isin(observed.ids_N, self._frequent)).double()
        columns = [hit_N3, torch.ones(len(record_N), 1), hit_N3 * content_N[:, None], content_N[:, None]]
        per_token = torch.cat([column.double() for column in columns], dim=1)
        floors_NF = self._floors(observed, content_N[:, None])
        sums_B, floors_B = (
            torch.zeros(count, x.shape[1], dtype=torch.float64).index_add_(0, record_N, x)
            for x in (per_token, floors_NF)
        )
        guess, truth = ids_NK[:, 0].numpy(), observed.ids_N.numpy()
        ends = torch.searchsorted(record_N, torch.arange(count + 1)).tolist()
        spans = [slice(start, end) for start, end in pairwise(ends)]
        texts = np.array(
            [
                [rouge_l(guess[s], truth[s]), float(np.array_equal(guess[s], truth[s]) and s.stop > s.start), 1.0]
                for s in spans
            ]
        )
        own_B3 = np.zeros((count, 3)) if self._hidden is None else self._hidden.counts(ids_NK, observed.seen)
        self._rows.append(np.concatenate([sums_B.numpy(), texts, floors_B.numpy(), own_B3], axis=1))

    def figures(self) -> dict[str, Figure]:
        """top1, top5, top10; content_top1, content_top5, content_top10; rouge_l; exact; with `hidden` also `FIGURE`.

        Over all draws so far.
        """
        rows = np.sum(self._rows, axis=0)
        ratios = {f"top{top}": (column, 3) for column, top in enumerate(TOPS)}
        ratios |= {f"content_top{top}": (4 + column, 7) for column, top in enumerate(TOPS)}
        ratios |= {"rouge_l": (8, 10), "exact": (9, 10)}
        ratios |= {f"floor_top{top}": (11 + column, 3) for column, top in enumerate(TOPS)}
        ratios |= {f"floor_content_top{top}": (14 + column, 7) for column, top in enumerate(TOPS)}
        ratios |= {f"language_top{top}": (17 + column, 3) for column, top in enumerate(TOPS)}
        ratios |= {f"language_content_top{top}": (20 + column, 7) for column, top in enumerate(TOPS)}
        if self._hidden is not None:
            ratios |= {FIGURE: (23, 25), f"floor_{FIGURE}": (24, 25)}
        values = dict(zip(ratios, bootstrap(rows, list(ratios.values())), strict=True))
        none = (0.0, 0.0, 0.0)
        return {
            name: Figure(
                value=value,
                low=low,
                high=high,
                floor=values.get(f"floor_{name}", none)[0],
                language_floor=values[f"language_{name}"][0] if f"language_{name}" in values else None,
            )
            for name, (value, low, high) in values.items()
            if not name.startswith(("floor_", "language_"))
        }

    def _floors(self, observed: Observed, content_N1: Tensor) -> Tensor:
        """Hits of guesses that look at no release.

        First the most frequent ids of the public text at every position, then a bigram model that knows the lengths.
        """
        count = len(observed.ids_N)
        deep = max(TOPS) * observed.seen.slots
        ordered = self._public.ids_V[self._public.counts_V.argsort(descending=True, stable=True)]
        lists = (ordered[:deep], ordered[len(self._frequent) :][:deep])
        everywhere, content = (
            hits(spread(ids.expand(count, -1), observed.seen), observed).double() if len(ids) else content_N1 * 0
            for ids in lists
        )
        by_length, content_by_length = (
            hits(ids_NK, observed).double() for ids_NK in self._lengths_only.guesses(observed.seen.record_N, max(TOPS))
        )
        return torch.cat(
            [
                everywhere,
                (content * content_N1).expand(-1, len(TOPS)),
                by_length,
                content_by_length * content_N1,
            ],
            dim=1,
        )


class AttributeScore:
    """Accuracy (floor: the attacked records' majority class), macro-F1 and AUC, over one or more draws."""

    def __init__(self, labels_B: NDArray[np.int64]) -> None:
        self._labels_B = labels_B
        self._scores: list[NDArray[np.float64]] = []

    def add(self, scores_BC: Tensor) -> None:
        """Add the class scores for one draw of the releases."""
        self._scores.append(scores_BC.double().numpy())

    def figures(self) -> dict[str, Figure]:
        """accuracy, macro_f1, auc (one class against the rest, averaged); the last two without an interval."""
        labels_B, classes = self._labels_B, np.unique(self._labels_B)
        right = np.mean([scores.argmax(1) == labels_B for scores in self._scores], axis=0)
        ((value, low, high),) = bootstrap(np.stack([right, np.ones(len(right))], axis=1), [(0, 1)])
        counts = np.bincount(labels_B)
        share = counts.max() / counts.sum()
        f1 = float(np.mean([_macro_f1(scores.argmax(1), labels_B, classes) for scores in self._scores]))
        area = float(np.mean([np.mean([_auc(s[:, c], labels_B == c) for c in classes]) for s in self._scores]))
        return {
            "accuracy": Figure(value=value, low=low, high=high, floor=float(share)),
            "macro_f1": Figure(value=f1, low=f1, high=f1, floor=float(2 * share / (1 + share) / len(classes))),
            "auc": Figure(value=area, low=area, high=area, floor=0.5),
        }


def _macro_f1(guess_B: NDArray[np.int64], labels_B: NDArray[np.int64], classes: NDArray[np.int64]) -> float:
    scores = []
    for c in classes:
        both = int(((guess_B == c) & (labels_B == c)).sum())
        scores.append(2 * both / max(int((guess_B == c).sum() + (labels_B == c).sum()), 1))
    return float(np.mean(scores))


def _auc(score_B: NDArray[np.float64], positive_B: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative; ties count half (Mann & Whitney 1947)."""
    positives, negatives = int(positive_B.sum()), int((~positive_B).sum())
    if not positives or not negatives:
        return 0.5
    _, inverse, counts = np.unique(score_B, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((rank[positive_B].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def mean_difference(one_B: NDArray[np.float64], other_B: NDArray[np.float64]) -> tuple[float, float, float]:
    """(value, low, high) of the mean of `one_B` minus that of `other_B`, of the same records."""
    (found,) = bootstrap(np.stack([one_B - other_B, np.ones(len(one_B))], axis=1), [(0, 1)])
    return found


def bootstrap(rows: NDArray[np.float64], ratios: list[tuple[int, int]]) -> list[tuple[float, float, float]]:
    """(value, low, high) of each ratio of column sums; 95% percentile interval over records (Efron 1979)."""
    rng = np.random.default_rng(0)
    count = len(rows)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64)
    drawn, sums = weights @ rows, rows.sum(0)
    out = []
    for top, bottom in ratios:
        below = np.maximum(drawn[:, bottom], 1e-9)
        low, high = np.quantile(drawn[:, top] / below, [0.025, 0.975])
        out.append((float(sums[top] / max(sums[bottom], 1e-9)), float(low), float(high)))
    return out
