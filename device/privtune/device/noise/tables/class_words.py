"""Which words indicate which class of a task, and how strongly: groups for clusters that mix no opposite meanings.

U usable ids, C classes, D width. The counts are public, or noised before they come here (`tables.private_counts`);
everything below is post-processing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.noise.context import NoiseContext

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_PSEUDO = 4.0  # texts that an id must occur in before half of its observed rate is trusted
_RESIDUAL = 0.05  # variance of a word's rate around what its embedding predicts
_RIDGE = 20.0  # in units of an id whose rate is known exactly


def public_counts(context: NoiseContext, place_V: IntArray) -> FloatArray:
    """counts_CU: in how many public labelled texts of each class an id occurs; a lexicon is a list of short texts.

    place_V: place of each id among the usable ones, -1 for the others.
    """
    classes = sorted(set(context.labels))
    counts_CU = np.zeros((len(classes), len(context.usable_ids)))
    for row, label in zip(context.labelled_rows, context.labels, strict=True):
        place = np.unique(place_V[np.asarray(row, dtype=np.int64)])
        counts_CU[classes.index(label), place[place >= 0]] += 1
    return counts_CU


def class_groups(counts_CU: FloatArray, noise_variance: float = 0.0, *, significance: float) -> IntArray:
    """Group of each id: 0 if it indicates no class; 1 + c where class c is over-represented among its texts; shape U.

    An id of n texts is expected in n * share_c texts of class c, with variance n * share_c * (1 - share_c), plus
    `noise_variance` where the counts are noised. It indicates its most over-represented class if that class is more
    than `significance` standard deviations above expectation.
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


def class_scores(counts_CU: FloatArray, noise_variance: float, unit_UD: Tensor) -> FloatArray:
    """How far each id is over-represented in the texts of each class: about -1 .. 1, shape (C, U).

    Empirical Bayes. The prior mean of an id's rate is what a ridge regression on the embeddings predicts from all
    other ids, so words that the counts never saw are scored by their neighbours. The observed rate is trusted as far as
    its variance (sampling, plus `noise_variance` in each cell) allows.
    """
    total_C = counts_CU.sum(axis=1).clip(min=1e-9)
    share_C1 = (total_C / total_C.sum())[:, None]
    seen_U = counts_CU.sum(axis=0).clip(min=0)
    rate_CU = np.clip((counts_CU - seen_U * share_C1) / (seen_U + _PSEUDO), -1, 1)
    precision_U = seen_U**2 / (seen_U.clip(min=1) + len(counts_CU) * noise_variance)
    predicted_CU = _ridge(unit_UD.numpy(), rate_CU, precision_U)
    believed_U = _RESIDUAL * precision_U / (1 + _RESIDUAL * precision_U)
    scores: FloatArray = predicted_CU + believed_U * (rate_CU - predicted_CU)
    return scores


def _ridge(x_UD: NDArray[np.float32], rate_CU: FloatArray, precision_U: FloatArray) -> FloatArray:
    weighted_UD = x_UD * precision_U[:, None].astype(np.float32)
    gram_DD = (weighted_UD.T @ x_UD).astype(np.float64) + _RIDGE * np.eye(x_UD.shape[1])
    solved_DC = np.linalg.solve(gram_DD, weighted_UD.T.astype(np.float64) @ rate_CU.T)
    predicted: FloatArray = (x_UD @ solved_DC).T.clip(-1, 1)
    return predicted


def graded_groups(
    scores_CU: FloatArray, frequency_U: FloatArray, *, grades: int, silent: int = 0, loud: float = 2.0
) -> IntArray:
    """Group of each id, dense from 0; shape U. A group is a class and a grade of how strongly an id indicates it.

    grades: of each class; every grade has an equal share of the root of frequency.
    silent: this many of the most frequent ids form a group of their own, unless they score above `loud` standard
        deviations of all scores: function words are what context gives away, and they reveal little about a class.
    """
    class_U, strength_U = scores_CU.argmax(axis=0), scores_CU.max(axis=0)
    weight_U = np.sqrt(frequency_U)
    groups_U = np.zeros(len(class_U), dtype=np.int64)
    for kind in range(len(scores_CU)):
        members = np.flatnonzero(class_U == kind)
        members = members[np.argsort(strength_U[members], kind="stable")]
        below = np.cumsum(weight_U[members]) - weight_U[members]
        level = (below / max(weight_U[members].sum(), 1e-12) * grades).astype(np.int64)
        groups_U[members] = 1 + kind * grades + level.clip(max=grades - 1)
    deviation = np.sqrt(np.average(strength_U**2, weights=weight_U))
    frequent = np.argsort(-frequency_U, kind="stable")[:silent]
    groups_U[frequent[strength_U[frequent] <= loud * deviation]] = 0
    dense: IntArray = np.unique(groups_U, return_inverse=True)[1].astype(np.int64)
    return dense
