"""What each task reads out of the top and what it should have been. Targets stay on the device.

N read-out positions of a micro-batch, as flat indices b * T + t into the released, right-padded batch.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privtune.device.data.batches import IndexArray
from privtune.device.data.encode import EncodedDataset
from privtune.device.privacy.bounds import label_truth
from privtune.device.release.perturber import Released
from privtune.shared.errors import InvalidInput

Readout = Literal["first", "last"]


def targets(
    data: EncodedDataset, indices: IndexArray, released: Released, readout: Readout
) -> tuple[IndexArray, Tensor]:
    """(readout_N, targets_N): the class of each record, or each token that the loss counts."""
    lengths_B = released.read_B
    width = int(lengths_B.max())
    if data.labels is not None:
        return pooled_positions(lengths_B, readout), torch.from_numpy(data.labels[indices])
    if data.loss_masks is None:
        raise InvalidInput("the data set has neither labels nor loss masks")
    positions, tokens = [], []
    for row, index in enumerate(indices.tolist()):
        ids_T, mask_T = data.ids[index], data.loss_masks[index]
        if len(ids_T) != lengths_B[row]:
            raise InvalidInput("this mechanism shortens records, so it can't serve causal-lm; choose another")
        predicted = np.flatnonzero(mask_T)
        predicted = predicted[predicted > 0]
        positions.append(row * width + predicted - 1)  # the state before a token predicts it
        tokens.append(ids_T[predicted])
    return np.concatenate(positions), torch.from_numpy(np.concatenate(tokens).astype(np.int64))


def pooled_positions(lengths_B: IndexArray, readout: Readout) -> IndexArray:
    """One position per record: the first ([CLS] of encoders) or the last (decoder classifiers)."""
    starts = np.arange(len(lengths_B)) * int(lengths_B.max())
    return starts if readout == "first" else starts + lengths_B - 1


def count_targets(data: EncodedDataset, indices: IndexArray) -> int:
    """Number of terms in the loss of these records."""
    if data.loss_masks is None:
        return len(indices)
    return int(sum(data.loss_masks[index][1:].sum() for index in indices.tolist()))


def loss_N(logits_NC: Tensor, targets_N: Tensor, label_epsilon: float | None = None) -> Tensor:
    """Cross-entropy of each target; of a randomised label, the likelihood of the draw instead.

    The draw has the distribution t * p + (1 - t) / C, so its likelihood is the loss ("forward correction", Patrini et
    al. 2017): consistent, and bounded where the unbiased "backward" correction is not.
    """
    if label_epsilon is None:
        return torch.nn.functional.cross_entropy(logits_NC, targets_N, reduction="none")
    classes = logits_NC.shape[-1]
    truth = label_truth(label_epsilon, classes)
    true_N = logits_NC.log_softmax(-1).gather(1, targets_N.unsqueeze(1)).squeeze(1)
    random_N = torch.full_like(true_N, math.log((1 - truth) / classes))
    return -torch.logaddexp(true_N + math.log(truth), random_N)


class Score:
    """Evaluation figures, summed over micro-batches."""

    def __init__(self, label_names: tuple[str, ...]) -> None:
        classes = len(label_names)
        self._confusion: npt.NDArray[np.int64] = np.zeros((classes, classes), dtype=np.int64)
        self._loss, self._count, self._hits = 0.0, 0, 0

    def add(self, logits_NC: Tensor, targets_N: Tensor) -> None:
        """Add a micro-batch of N targets."""
        guesses_N = logits_NC.argmax(-1)
        self._loss += float(torch.nn.functional.cross_entropy(logits_NC, targets_N, reduction="sum"))
        self._count += len(targets_N)
        self._hits += int((guesses_N == targets_N).sum())
        if len(self._confusion):
            np.add.at(self._confusion, (targets_N.numpy(), guesses_N.numpy()), 1)

    def metrics(self) -> dict[str, float]:
        """Classification: loss, accuracy, macro_f1. Causal LM: loss, perplexity, token_accuracy."""
        loss = self._loss / max(self._count, 1)
        hits = self._hits / max(self._count, 1)
        if not len(self._confusion):
            return {"loss": loss, "perplexity": float(np.exp(min(loss, 700.0))), "token_accuracy": hits}
        true = np.diag(self._confusion)
        f1 = 2 * true / np.maximum(self._confusion.sum(0) + self._confusion.sum(1), 1)
        return {"loss": loss, "accuracy": hits, "macro_f1": float(f1.mean())}
