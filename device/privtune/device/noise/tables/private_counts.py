"""Word counts of the PRIVATE records by class, under Laplace noise with an epsilon of their own.

Drawn once per data set and kept: a second draw would cost again. C classes, U usable ids.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.noise.gaussian_noise import PURE, AggregateLaw
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.table_cache import SUFFIX, StoredTable, read_table, write_table
from privtune.device.privacy.bounds import counts_scale
from privtune.shared.errors import JobConflict


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Records with a class.

    rows: token ids of each record.
    labels: their classes, 0..classes-1.
    classes: number of classes; public.
    places: of the records in their file; None: in this order.
    """

    rows: Sequence[NDArray[np.int32]]
    labels: NDArray[np.int64]
    classes: int
    places: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class DrawnOnce:
    """What is fitted on a data set under noise: drawn at the first request, and read from `folder` after that.

    folder: on this device.
    fingerprint: identifies the data set; stays on this device.
    source: of the noise.
    records: None: only what is already kept may be used, as for predictions.
    """

    folder: Path
    fingerprint: str
    source: NoiseSource
    records: LabelledRows | None = None

    def kept(
        self,
        kind: str,
        what: str,
        draw: Callable[[LabelledRows], tuple[Tensor, Tensor]],
        epsilon: float,
        *asked: Any,
    ) -> tuple[Tensor, Tensor]:
        """What `draw` makes of the records, and share_N: how far each record can have moved it.

        A record's share is of the most that any could, 1/2 to 1; it depends on the record and stays on the device. N
        records in the order of their file.

        kind: of the file. what: it is, for messages. asked: what its distribution depends on besides, JSON-ready.

        Raises:
            JobConflict: nothing is kept, and no records are at hand.
            StorageFull, ArtifactCorrupt: the file can't be written, or is damaged.
        """
        key = json.dumps([self.fingerprint, *asked, epsilon, self.source.unsafe]).encode()
        path = self.folder / f"{kind}-{hashlib.sha256(key).hexdigest()[:24]}{SUFFIX}"
        if not path.exists():
            if self.records is None:
                raise JobConflict(
                    f"the {what} were made from are not on this device; use the device and home folder that trained it"
                )
            drawn, share_N = draw(self.records)
            if self.records.places is not None:
                share_N = share_N[np.argsort(self.records.places)]
            tensors = {kind: drawn, "share_N": share_N.contiguous()}
            write_table(StoredTable(kind=kind, tensors=tensors, facts={"epsilon": epsilon}), path)
        found = read_table(path).tensors
        return found[kind], found["share_N"]


class PrivateCounts(DrawnOnce):
    """Noised word counts of a data set."""

    def __call__(
        self, usable_ids: Tensor, epsilon: float, words: int, law: AggregateLaw = PURE
    ) -> tuple[NDArray[np.float64], float]:
        """counts_CU under noise that makes them `epsilon`-private for replacing one record, and its variance.

        Laplace noise, or Gaussian noise for (`epsilon`, `law.delta`), where a replaced record moves the counts by at
        most sqrt(2 words) in L2. Each record adds at most `words` different ids, picked at random. Every cell of the
        public vocabulary is noised, so that not even which words occur is revealed. Raises as `kept`.
        """
        counts_CU, _ = self._drawn(usable_ids, epsilon, words, law)
        return counts_CU.numpy(), counts_variance(epsilon, words, law)

    def shares(self, usable_ids: Tensor, epsilon: float, words: int, law: AggregateLaw = PURE) -> Tensor:
        """share_N of the same counts: a record with fewer than `words` different words moved them less."""
        return self._drawn(usable_ids, epsilon, words, law)[1]

    def _drawn(self, usable_ids: Tensor, epsilon: float, words: int, law: AggregateLaw) -> tuple[Tensor, Tensor]:
        def draw(records: LabelledRows) -> tuple[Tensor, Tensor]:
            counts_CU, added_N = bounded_counts(records, usable_ids, words, self.source)
            share_N = (added_N / words + 1) / 2
            noised_CU = noised_counts(counts_CU, epsilon, words, law, self.source)
            return noised_CU, share_N if law.kind == "pure" else share_N.sqrt()

        what = "word counts that this job's clusters"
        return self.kept("counts", what, draw, epsilon, usable_ids.tolist(), words, *law.named)


def noised_counts(counts_CU: Tensor, epsilon: float, words: int, law: AggregateLaw, source: NoiseSource) -> Tensor:
    """Counts under the noise that protects one record at `epsilon`; float64, the shape of the counts."""
    normal = law.gaussian(epsilon, math.sqrt(2 * words))
    if normal is not None:
        return normal.release(counts_CU, source).double()
    return counts_CU + source.laplace(counts_scale(epsilon, words), *counts_CU.shape)


def counts_variance(epsilon: float, words: int, law: AggregateLaw) -> float:
    """Of that noise."""
    normal = law.gaussian(epsilon, math.sqrt(2 * words))
    return float(2 * counts_scale(epsilon, words) ** 2 if normal is None else normal.sigma**2)


def bounded_counts(records: LabelledRows, usable_ids: Tensor, words: int, source: NoiseSource) -> tuple[Tensor, Tensor]:
    """Exact counts_CU: each record adds one for each of at most `words` different usable ids, picked at random.

    Second, added_N: how many each record adds.
    """
    place_V = np.full(int(usable_ids.max()) + 1, -1, dtype=np.int64)
    place_V[usable_ids.numpy()] = np.arange(len(usable_ids))
    counts_CU = torch.zeros(records.classes, len(usable_ids), dtype=torch.float64)
    added_N = torch.zeros(len(records.rows))
    for number, (row, label) in enumerate(zip(records.rows, records.labels.tolist(), strict=True)):
        place = place_V[row[row < len(place_V)]]
        present = np.unique(place[place >= 0])
        if len(present) > words:
            present = present[np.argsort(source.uniform(len(present)).numpy())[:words]]
        counts_CU[label, torch.from_numpy(present)] += 1
        added_N[number] = len(present)
    return counts_CU, added_N
