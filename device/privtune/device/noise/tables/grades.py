"""Words graded by how loudly they speak for a class: few clusters, none of which mixes opposite meanings.

U usable ids, C classes, D width. The counts are public, or noised before they come here; all below is post-processing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.noise.tables.word_statistics import FloatArray, IntArray

_PSEUDO = 4.0  # texts that an id must have been seen in before half of its rate is believed
_RESIDUAL = 0.05  # variance of a word's rate around what its embedding predicts
_RIDGE = 20.0  # in units of an id whose rate is known exactly


def class_scores(counts_CU: FloatArray, noise_variance: float, unit_UD: Tensor) -> FloatArray:
    """How far each id is over-represented in the texts of each class: about -1 .. 1, shape (C, U).

    Empirical Bayes. The prior mean of an id's rate is what a ridge regression on the embeddings predicts from all
    other ids, so words that the counts never saw are graded by their neighbours; the counts' own rate is believed as
    far as their variance (sampling, and `noise_variance` a cell) allows.
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
    """Group of each id, dense from 0: (class, grade), every grade of a class with an equal share of frequency's root.

    silent: so many of the most frequent ids form a group of their own, unless they speak at more than `loud` standard
    deviations of all scores: function words are what context gives away, and they say little of a class.
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
