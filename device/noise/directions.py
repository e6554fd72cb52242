"""Directions in which the states of a record tell its class, from public texts or from private means under noise.

D hidden width, C classes, B records. Linear discriminant analysis: inverse covariance of PUBLIC states times the
difference of class means; what noise the means carry is post-processed alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from device.noise.base import clip_rows
from device.noise.context import NoiseContext
from device.noise.counts import LabelledRows
from device.noise.randomness import NoiseSource
from device.noise.store import SUFFIX, Table, read_table, write_table
from shared.errors import JobConflict
from shared.privacy import counts_scale

KIND = "means"
_COUNT_SHARE = 0.1  # of the budget goes to how many records each class has
_SHRINKAGE = 0.1  # of the covariance towards its mean variance
_BATCH = 64
_RECORDS = 4000  # public records that the covariance is estimated on


def public_directions(context: NoiseContext) -> Tensor:
    """directions_DC of unit length, from the labelled public texts."""
    means_BD = record_means(context, context.labelled_rows)
    labels_B = np.asarray(context.labels)
    sums_CD = torch.stack([means_BD[torch.from_numpy(labels_B == c)].sum(0) for c in sorted(set(labels_B.tolist()))])
    counts_C = torch.tensor([(labels_B == c).sum() for c in sorted(set(labels_B.tolist()))]).float()
    return _discriminants(sums_CD, counts_C, record_means(context, _public_rows(context)))


@dataclass(frozen=True, kw_only=True)
class PrivateMeans:
    """Directions from a data set's class means under noise, made at the first request and read from `folder` after.

    fingerprint: names the data set (kept on this device only). records: None where only what is kept may be used.
    """

    folder: Path
    fingerprint: str
    source: NoiseSource
    records: LabelledRows | None = None

    def __call__(self, context: NoiseContext, epsilon: float) -> Tensor:
        """directions_DC of unit length, `epsilon`-private for replacing one record.

        A record adds its mean state, centred by public states and clipped to their median length R, to its class's
        sum: replacing it moves all sums together by at most 2R in L2, so d_chi noise of rate epsilon / 2R on the
        sums (Hardt & Talwar 2010, K-norm mechanism) is epsilon-private; the class counts have Laplace noise.
        Raises JobConflict when nothing is kept and no records are at hand, StorageFull, ArtifactCorrupt.
        """
        asked = json.dumps([self.fingerprint, context.identity, epsilon, self.source.unsafe])
        path = self.folder / f"{KIND}-{hashlib.sha256(asked.encode()).hexdigest()[:24]}{SUFFIX}"
        if not path.exists():
            if self.records is None:
                raise JobConflict(
                    "the class means that this job's codes were made of are not on this device; use the device and "
                    "home folder that trained it"
                )
            tensors = {"directions": self._draw(context, self.records, epsilon)}
            write_table(Table(kind=KIND, tensors=tensors, facts={"epsilon": epsilon}), path)
        return read_table(path).tensors["directions"]

    def _draw(self, context: NoiseContext, records: LabelledRows, epsilon: float) -> Tensor:
        sums_CD, radius = clipped_sums(context, records)
        eta = (1 - _COUNT_SHARE) * epsilon / (2 * radius)
        # One draw over the whole C x D block: its length hides all sums at once.
        sums_CD = sums_CD + self.source.dchi(eta, 1, sums_CD.numel()).view_as(sums_CD)
        counts_C = torch.bincount(torch.from_numpy(records.labels), minlength=records.classes).double()
        counts_C = counts_C + self.source.laplace(counts_scale(_COUNT_SHARE * epsilon, 1), records.classes)
        return _discriminants(sums_CD, counts_C.clamp(min=1.0).float(), record_means(context, _public_rows(context)))


def clipped_sums(context: NoiseContext, records: LabelledRows) -> tuple[Tensor, float]:
    """Exact sums_CD of the records' centred mean states, each clipped to the public radius R; and R."""
    public_BD = record_means(context, _public_rows(context))
    centre_D = public_BD.mean(0)
    radius = float((public_BD - centre_D).norm(dim=1).median())
    away_BD = clip_rows(record_means(context, records.rows) - centre_D, radius)
    sums_CD = torch.zeros(records.classes, away_BD.shape[1])
    sums_CD.index_add_(0, torch.from_numpy(records.labels), away_BD)
    return sums_CD, radius


def _discriminants(sums_CD: Tensor, counts_C: Tensor, public_BD: Tensor) -> Tensor:
    """Unit directions (D, C'), one a class against the rest; two classes have one."""
    total_D, total = sums_CD.sum(0), counts_C.sum()
    differences = [
        sums / count - (total_D - sums) / (total - count).clamp(min=1.0)
        for sums, count in zip(sums_CD, counts_C, strict=True)
    ]
    difference_CD = torch.stack(differences[:1] if len(differences) == 2 else differences)
    away_BD = (public_BD - public_BD.mean(0)).double()
    covariance_DD = away_BD.T @ away_BD / len(away_BD)
    spread = covariance_DD.diagonal().mean()
    shrunk_DD = (1 - _SHRINKAGE) * covariance_DD + _SHRINKAGE * spread * torch.eye(len(covariance_DD))
    directions_DC = torch.linalg.solve(shrunk_DD, difference_CD.T.double())
    unit_DC: Tensor = (directions_DC / directions_DC.norm(dim=0).clamp(min=1e-30)).float()
    return unit_DC


def record_means(context: NoiseContext, rows: Sequence[Sequence[int] | NDArray[np.int32]]) -> Tensor:
    """Mean state at the cut of each row's ordinary tokens, (B, D); zero for rows without any."""
    special = torch.tensor(sorted(context.special_ids), dtype=torch.int64)
    lengths_B = np.array([len(row) for row in rows])
    means_BD = torch.zeros(len(rows), context.hidden_size)
    done = 0
    for length in np.unique(lengths_B[lengths_B > 0]).tolist():
        # Rows of one length go together, so that none is padded.
        for chosen in torch.split(torch.from_numpy(np.flatnonzero(lengths_B == length)), _BATCH):
            ids_BT = torch.from_numpy(np.stack([np.asarray(rows[index], dtype=np.int64) for index in chosen.tolist()]))
            real_BT1 = (~torch.isin(ids_BT, special)).unsqueeze(-1)
            states_BTD = context.states(ids_BT, "cut")
            means_BD[chosen] = (states_BTD * real_BT1).sum(1) / real_BT1.sum(1).clamp(min=1)
            done += len(chosen)
            context.progress("means of records", done / len(rows))
    return means_BD


def _public_rows(context: NoiseContext) -> Sequence[Sequence[int]]:
    return context.public_rows[:_RECORDS] or [row.tolist() for rows in context.sample_rows() for row in rows]
