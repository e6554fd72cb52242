"""How much each token matters to the task: computed on the device, never sent. Vocabulary V, records B, tokens T.

Our reading of the paper's cues. Classification: TF-IDF-like weight x (1 - normalised class entropy). Generation:
TF-IDF x surprise. Fitted on private records it is itself private knowledge: see the row "fitted" of the accounting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtune.shared.errors import InvalidInput

IntArray = NDArray[np.int64] | NDArray[np.int32]

_SMOOTHING = 1.0


class TokenImportance:
    """Importance of each id, made by `fit`.

    weight_V: weight of each id before the record's own term frequency, float32.
    scale: the weight that counts as 1.
    """

    def __init__(self, weight_V: Tensor, scale: float) -> None:
        self.weight_V, self.scale = weight_V, scale

    def fingerprint(self) -> str:
        """SHA-256 of the weights, which shape the distribution of the releases."""
        return hashlib.sha256(self.weight_V.numpy().tobytes() + repr(self.scale).encode()).hexdigest()

    @classmethod
    def fit(
        cls, rows: Sequence[Sequence[int] | IntArray], vocabulary: int, labels: Sequence[int] | IntArray | None = None
    ) -> TokenImportance:
        """Fit on the token ids of texts. labels: their classes for classification; None: generation."""
        if not len(rows) or (labels is not None and len(labels) != len(rows)):
            raise InvalidInput("token importance needs texts, and one label for each of them or none at all")
        present = [np.unique(np.asarray(row, dtype=np.int64)) for row in rows]
        document_V = np.bincount(np.concatenate(present), minlength=vocabulary).astype(np.float64)
        idf_V = np.log((1 + len(rows)) / (1 + document_V)) / np.log(1 + len(rows))
        if labels is None:
            count_V = np.bincount(
                np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]), minlength=vocabulary
            )
            surprise_V = -np.log((count_V + _SMOOTHING) / (count_V.sum() + _SMOOTHING * vocabulary))
            weight_V = idf_V * surprise_V / surprise_V.max()
        else:
            weight_V = idf_V * (1 - _class_entropy(present, np.asarray(labels), vocabulary))
        seen = np.concatenate([weight_V[np.asarray(row, dtype=np.int64)] for row in rows])
        return cls(torch.from_numpy(weight_V).float(), max(float(np.quantile(seen, 0.95)), 1e-9))

    def of(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Importance of each token in its record, 0 to 1, float32; 0 at padding. Repeats count by their log."""
        same_BTT = (ids_BT.unsqueeze(2) == ids_BT.unsqueeze(1)) & mask_BT.to(torch.bool).unsqueeze(1)
        frequency_BT = 1 + same_BTT.sum(dim=2).clamp(min=1).log()
        weight_BT = (self.weight_V[ids_BT] * frequency_BT / self.scale).clamp(0.0, 1.0)
        return weight_BT * mask_BT.to(weight_BT.dtype)


def _class_entropy(
    present: list[NDArray[np.int64]], labels_N: NDArray[np.int64], vocabulary: int
) -> NDArray[np.float64]:
    """Entropy of the class given that the id occurs, over log C, with add-one counts; 1 for an unseen id."""
    classes = np.unique(labels_N)
    if len(classes) < 2:
        return np.zeros(vocabulary)
    counts_CV = np.stack(
        [
            np.bincount(
                np.concatenate([ids for ids, label in zip(present, labels_N, strict=True) if label == c]),
                minlength=vocabulary,
            )
            for c in classes
        ]
    )
    share_CV = (counts_CV + _SMOOTHING) / (counts_CV.sum(axis=0) + _SMOOTHING * len(classes))
    entropy_V: NDArray[np.float64] = -(share_CV * np.log(share_CV)).sum(axis=0) / np.log(len(classes))
    return entropy_V
