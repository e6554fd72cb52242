"""What a mechanism costs a language model: `privtune.device.audit.utility` for next tokens instead of classes.

The head is frozen, as in a job. B records, T tokens, P predicted tokens, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from privtune.device.audit.attacks.attack import Say, silent
from privtune.device.audit.utility import Trainee, UtilityTraining, epochs, rows
from privtune.device.audit.victim import Victim
from privtune.device.data.encode import EncodedDataset
from privtune.device.model.objectives import Score
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.partition import Head, Top

_SCORE_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class LanguageUtility:
    """Scores over the predicted tokens of held-out records. token_accuracy: share of them that were the most likely."""

    perplexity: float
    token_accuracy: float


class TunedLanguageModel(Trainee):
    """A trainable copy of the top below the frozen head."""

    top: Top

    def __init__(self, top: Top, head: Head, precision: str) -> None:
        super().__init__(top, head)
        self._low = precision == "bfloat16"

    def precision(self) -> torch.autocast:
        """The context in which the top runs, in training and after."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self._low)

    def forward(self, y_BTD: Tensor, mask_BT: Tensor, readout_P: Tensor) -> Tensor:
        """Scores of the next token at the flat positions b * T + t, (P, V)."""
        with self.precision():
            out_PD = self.top(y_BTD, mask_BT, readout_P)
        scores_PV: Tensor = self.head(out_PD.float())
        return scores_PV


def tune(
    victim: Victim,
    top: Top,
    head: Head,
    train: EncodedDataset,
    *,
    training: UtilityTraining,
    seed: int = 0,
    say: Say = silent,
) -> TunedLanguageModel:
    """Train a copy of the top on one release of each record; the given top and head are not changed.

    Raises InvalidInput for records without loss masks, NonFinite.
    """
    _require_masks(train)
    seen = victim.observe(train.ids).seen
    network = TunedLanguageModel(top, head, training.precision)

    def loss(chosen: Tensor) -> Tensor:
        y_BTD, mask_BT = rows(seen, chosen)
        readout_P, target_P = _targets(train, chosen, mask_BT.shape[1])
        return nn.functional.cross_entropy(network(y_BTD, mask_BT, readout_P), target_P)

    for _ in epochs(network, loss, seen, training, seed, say):
        pass
    return network


@torch.no_grad()
def score(network: TunedLanguageModel, victim: Victim, held_out: EncodedDataset) -> LanguageUtility:
    """Scores on `held_out`, each record released once. Raises InvalidInput for records without loss masks."""
    _require_masks(held_out)
    seen, total = victim.observe(held_out.ids).seen, Score(())
    network.eval()
    for chosen in torch.split(torch.arange(len(seen)), _SCORE_BATCH):
        y_BTD, mask_BT = rows(seen, chosen)
        readout_P, target_P = _targets(held_out, chosen, mask_BT.shape[1])
        total.add(network(y_BTD, mask_BT, readout_P), target_P)
    found = total.metrics()
    return LanguageUtility(perplexity=found["perplexity"], token_accuracy=found["token_accuracy"])


def _require_masks(data: EncodedDataset) -> None:
    if data.loss_masks is None:
        raise InvalidInput("perplexity is measured on records that say which tokens are predicted")


def _targets(data: EncodedDataset, chosen: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(readout_P, target_P): a token is predicted from the state before it."""
    positions, tokens = [], []
    for row, index in enumerate(chosen.tolist()):
        predicted = np.flatnonzero(data.loss_masks[index]) if data.loss_masks else np.empty(0, dtype=np.int64)
        positions.append(row * width + predicted - 1)
        tokens.append(data.ids[index][predicted])
    return torch.from_numpy(np.concatenate(positions)), torch.from_numpy(np.concatenate(tokens).astype(np.int64))
