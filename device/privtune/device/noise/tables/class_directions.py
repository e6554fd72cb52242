"""Directions in which the mean state of a record reveals its class, from public texts or private sums under noise.

D hidden width, C classes, B records. Linear discriminant analysis: inverse covariance of PUBLIC states times sums that
separate the classes; everything after the noise is post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.noise.clipping import clip_rows
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.gaussian_noise import PURE, AggregateLaw
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.private_counts import DrawnOnce, LabelledRows
from privtune.device.privacy.bounds import dchi_variance

_SHRINKAGE = 0.3  # smallest ridge, in mean variances of a state
_BATCH = 64
_RECORDS = 4000  # public records that the covariance is estimated on


def public_directions(context: NoiseContext) -> Tensor:
    """directions_DC of unit length, from the labelled public texts."""
    labels_B = np.unique(np.asarray(context.labels), return_inverse=True)[1]
    ids = [np.asarray(row, dtype=np.int32) for row in context.labelled_rows]
    rows = LabelledRows(rows=ids, labels=labels_B, classes=int(labels_B.max()) + 1)
    contrasts_CD, _, public_BD, _ = contrasts(context, rows)
    return _discriminants(contrasts_CD, public_BD, 0.0)


class PrivateMeans(DrawnOnce):
    """Directions from a data set's class means under noise."""

    def __call__(self, context: NoiseContext, epsilon: float, law: AggregateLaw = PURE) -> Tensor:
        """directions_DC of unit length, `epsilon`-private for replacing one record.

        A record adds its mean state x, centred by public states and clipped to their median length R, to the sums
        (`contrasts`): replacing it moves all of them together by at most 2R in L2 (2R sqrt(2) for three classes or
        more), so one draw of d_chi noise over the whole block at rate epsilon / that is epsilon-private (the K-norm
        mechanism of Hardt & Talwar 2010 for the L2 ball); Gaussian noise makes it (epsilon, `law.delta`)-private.
        Raises as `kept`.
        """

        return self._drawn(context, epsilon, law)[0]

    def shares(self, context: NoiseContext, epsilon: float, law: AggregateLaw = PURE) -> Tensor:
        """share_N of the same sums: a record whose mean state is near the centre moved them less."""
        return self._drawn(context, epsilon, law)[1]

    def _drawn(self, context: NoiseContext, epsilon: float, law: AggregateLaw) -> tuple[Tensor, Tensor]:
        def draw(records: LabelledRows) -> tuple[Tensor, Tensor]:
            contrasts_CD, moved, public_BD, share_B = contrasts(context, records)
            noised_CD, variance = noised(contrasts_CD, moved, epsilon, law, self.source)
            return _discriminants(noised_CD, public_BD, variance), share_B

        return self.kept("means", "class means that this job's codes", draw, epsilon, context.identity, *law.named)


def noised(
    contrasts_CD: Tensor, moved: float, epsilon: float, law: AggregateLaw, source: NoiseSource
) -> tuple[Tensor, float]:
    """The sums under the noise that protects one record at `epsilon`, and its variance per number."""
    normal = law.gaussian(epsilon, moved)
    if normal is not None:
        return normal.release(contrasts_CD, source), normal.sigma**2
    size = contrasts_CD.numel()
    # One draw over the whole block: its length hides all sums at once.
    noise_CD = source.dchi(epsilon / moved, 1, size).view_as(contrasts_CD)
    return contrasts_CD + noise_CD, dchi_variance(epsilon / moved, size)


def contrasts(context: NoiseContext, records: LabelledRows) -> tuple[Tensor, float, Tensor, Tensor]:
    """Exact sums that separate the classes (C', D), how far one record can move them in L2, and the public means_BD.

    Last, share_B: how far the place of each record is from any that another could have, of the most it can be.

    Two classes: one sum, of x for one class and -x for the other. More: for each class its sum of x, minus that of the
    other classes over their number.
    """
    weight_BC, away_BD, moved, public_BD, share_B = contributions(context, records)
    return weight_BC.T @ away_BD, moved, public_BD, share_B


def contributions(context: NoiseContext, records: LabelledRows) -> tuple[Tensor, Tensor, float, Tensor, Tensor]:
    """What each record adds to the sums: its weight in each (B, C') times its state (B, D); the rest as `contrasts`."""
    public_BD = record_means(context, _public_rows(context))
    centre_D = public_BD.mean(0)
    radius = float((public_BD - centre_D).norm(dim=1).median())
    away_BD = clip_rows(record_means(context, records.rows) - centre_D, radius)
    share_B = (away_BD.norm(dim=1) / max(radius, 1e-30) + 1).div(2).clamp(max=1.0)
    one_BC = torch.nn.functional.one_hot(torch.from_numpy(records.labels), records.classes).float()
    if records.classes == 2:
        return one_BC[:, :1] - one_BC[:, 1:], away_BD, 2 * radius, public_BD, share_B
    against_BC = one_BC - (1 - one_BC) / (records.classes - 1)
    # A record's block has squared length (1 + 1 / (C - 1)) |x|^2 <= 1.5 R^2, so two differ by at most 2 R sqrt(1.5).
    return against_BC, away_BD, 2 * radius * math.sqrt(1 + 1 / (records.classes - 1)), public_BD, share_B


def _discriminants(contrasts_CD: Tensor, public_BD: Tensor, noise_variance: float) -> Tensor:
    """Unit directions (D, C'): (covariance + ridge)^-1 contrast; the ridge grows with a contrast's share of noise.

    This is the posterior mean for contrasts whose prior covariance is that of the states (Wiener filter).
    """
    away_BD = (public_BD - public_BD.mean(0)).double()
    covariance_DD = away_BD.T @ away_BD / len(away_BD)
    spread, width = float(covariance_DD.diagonal().mean()), len(covariance_DD)
    seen_C = contrasts_CD.double().square().mean(dim=1)
    noise_C = (noise_variance / (seen_C - noise_variance).clamp(min=0.05 * seen_C.clamp(min=1e-30))).tolist()
    found = [
        torch.linalg.solve(covariance_DD + spread * (_SHRINKAGE + noise) * torch.eye(width), contrast_D.double())
        for contrast_D, noise in zip(contrasts_CD, noise_C, strict=True)
    ]
    directions_DC = torch.stack(found, dim=1)
    unit_DC: Tensor = (directions_DC / directions_DC.norm(dim=0).clamp(min=1e-30)).float()
    return unit_DC


def record_means(context: NoiseContext, rows: Sequence[Sequence[int]] | Sequence[NDArray[np.int32]]) -> Tensor:
    """Mean state at the cut of each row's ordinary tokens, (B, D); zero for rows without any."""
    lengths_B = np.array([len(row) for row in rows])
    means_BD = torch.zeros(len(rows), context.hidden_size)
    done = 0
    for length in np.unique(lengths_B[lengths_B > 0]).tolist():
        # Rows of equal length share a batch, so that none is padded.
        for chosen in torch.split(torch.from_numpy(np.flatnonzero(lengths_B == length)), _BATCH):
            ids_BT = torch.from_numpy(np.stack([np.asarray(rows[index], dtype=np.int64) for index in chosen.tolist()]))
            real_BT1 = (~context.is_special(ids_BT)).unsqueeze(-1)
            states_BTD = context.states(ids_BT, "cut")
            means_BD[chosen] = (states_BTD * real_BT1).sum(1) / real_BT1.sum(1).clamp(min=1)
            done += len(chosen)
            context.progress("means of records", done / len(rows))
    return means_BD


def _public_rows(context: NoiseContext) -> Sequence[Sequence[int]]:
    return context.public_rows[:_RECORDS] or [row.tolist() for rows in context.sample_rows() for row in rows]
