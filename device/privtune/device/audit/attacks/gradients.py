"""What a language model's gradients give away: its very training text, whatever noise the vectors carry.

The head is public and frozen and the cloud computes its input, so it knows p = softmax(W out). The gradient that the
device sends back is W'(p - y) / items. Without W'p, what remains is the next token's row of W (as Zhao et al. 2020,
iDLG, for classes). B records, P read-out rows, N secret tokens, K guesses, V vocabulary, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from privtune.device.audit.attacks.attack import GUESSES
from privtune.device.audit.observed import Observed
from privtune.device.data.encode import EncodedDataset
from privtune.device.model.head import CHUNK_ROWS, HeadTrainer
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import OptimSpec
from privtune.shared.modeling.partition import Head

NAME, VARIANT = "GIA", "head gradients"
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class SentBack:
    """Gradients of one micro-batch as the cloud receives them, beside its own output.

    record_P: the record.
    place_P: the position in it of the token that the row predicts.
    out_PD: output of the top; None if it was not kept (p is then left out, which costs little).
    items: terms in the step's loss.
    """

    record_P: Tensor
    place_P: Tensor
    gradient_PD: Tensor
    out_PD: Tensor | None
    items: float


def next_tokens(head: Head, sent: SentBack) -> Tensor:
    """ids_PK: the tokens whose rows of W are closest in direction to the remainder of the gradient."""
    with torch.no_grad():
        rows_DV = head(torch.eye(sent.gradient_PD.shape[1])) - head(torch.zeros(1, sent.gradient_PD.shape[1]))
    weight_VD = rows_DV.T.float()  # the head is linear: its output for each unit vector is a column of W
    directions_VD = nn.functional.normalize(weight_VD, dim=1)
    guesses = []
    for start in range(0, len(sent.gradient_PD), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        left_CD = -sent.gradient_PD[part] * sent.items
        if sent.out_PD is not None:
            with torch.no_grad():
                left_CD = left_CD + head(sent.out_PD[part]).float().softmax(-1) @ weight_VD
        guesses.append((left_CD @ directions_VD.T).topk(GUESSES, dim=1).indices)
    return torch.cat(guesses)


def read_back(head: Head, batches: Iterable[SentBack], observed: Observed) -> Tensor:
    """ids_NK for the tokens of `observed`, as the gradients name them; -1 if nothing was predicted (a prompt)."""
    seen = observed.seen
    starts_B = seen.lengths_B.cumsum(0) - seen.lengths_B
    unit_R = torch.full((len(seen.y_RD),), -1)
    unit_R[seen.row_N] = torch.arange(len(seen.row_N))
    ids_NK = torch.full((len(observed.ids_N), GUESSES), -1)
    for sent in batches:
        unit_P = unit_R[starts_B[sent.record_P] + sent.place_P]
        ids_NK[unit_P[unit_P >= 0]] = next_tokens(head, sent)[unit_P >= 0]
    return ids_NK


def simulated(data: EncodedDataset, observed: Observed, top: nn.Module, head: Head) -> Iterator[SentBack]:
    """The gradients of a first step on these releases, by the device's real loss. Raises InvalidInput without masks."""
    if data.loss_masks is None:
        raise InvalidInput("only a language model's records say which tokens are predicted")
    trainer = HeadTrainer(head, OptimSpec(), seed=0, total_steps=1)
    first = 0
    for step, part in enumerate(observed.seen.batches(_BATCH)):
        y_BTD, mask_BT = part.padded()
        predicted = [np.flatnonzero(mask_T) for mask_T in data.loss_masks[first : first + len(part)]]
        row_P = torch.repeat_interleave(torch.arange(len(part)), torch.tensor([len(places) for places in predicted]))
        place_P = torch.from_numpy(np.concatenate(predicted))
        ids = [data.ids[first + row][places] for row, places in enumerate(predicted)]
        with torch.no_grad():
            out_PD = top(y_BTD, mask_BT, row_P * mask_BT.shape[1] + place_P - 1)
        targets_P = torch.from_numpy(np.concatenate(ids).astype(np.int64))
        _, gradient_PD = trainer.loss(out_PD, targets_P, step=step, micro_batch=0, items=len(targets_P))
        yield SentBack(
            record_P=row_P + first,
            place_P=place_P,
            gradient_PD=gradient_PD,
            out_PD=out_PD.detach(),
            items=len(targets_P),
        )
        first += len(part)
