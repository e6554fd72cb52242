"""Attention relations of a block: how alike the queries of two tokens are, and the keys, and the values.

MiniLMv2 (arXiv 2012.15828): the student's relations are held to the teacher's by the Kullback-Leibler divergence. The
projections are found by structure, without names: the linear layers of the block that read what its first one reads.
A block that projects all three at once (GPT-2) has one relation instead of three.

B records, T tokens, W width of a projection, R relation heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_HEAD_WIDTH = 64  # of a relation head, where it divides the projection


class Projections:
    """What the queries', keys' and values' layers of a block gave in its last pass."""

    def __init__(self, block: nn.Module) -> None:
        self._read: Tensor | None = None
        self.found: list[Tensor] = []
        block.register_forward_pre_hook(self._begin)
        for module in block.modules():
            if isinstance(module, nn.Linear | Conv1D):
                module.register_forward_hook(self._note)

    def _begin(self, *_: Any) -> None:
        self._read, self.found = None, []

    def _note(self, _: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if self._read is None:
            self._read = given[0]
        if given[0] is self._read:
            self.found.append(output)


def relation_loss(student: list[Tensor], teacher: list[Tensor], mask_BT: Tensor) -> Tensor:
    """Mean divergence of the student's relations from the teacher's, over projections, heads and real tokens."""
    losses = []
    for mine_BTW, theirs_BTW in zip(student, teacher, strict=True):
        ours_BRTT = _scores(mine_BTW.float(), mask_BT).log_softmax(-1)
        theirs_BRTT = _scores(theirs_BTW.float(), mask_BT).softmax(-1)
        each_BRT = nn.functional.kl_div(ours_BRTT, theirs_BRTT, reduction="none").sum(-1)
        real_B1T = mask_BT[:, None].bool()
        losses.append((each_BRT * real_B1T).sum() / (real_B1T.sum() * each_BRT.shape[1]))
    return torch.stack(losses).mean()


def _scores(x_BTW: Tensor, mask_BT: Tensor) -> Tensor:
    B, T, W = x_BTW.shape
    width = _HEAD_WIDTH if W % _HEAD_WIDTH == 0 else W
    heads_BRTW = x_BTW.view(B, T, W // width, width).transpose(1, 2)
    scores_BRTT: Tensor = heads_BRTW @ heads_BRTW.transpose(-1, -2) / width**0.5
    return scores_BRTT.masked_fill(mask_BT[:, None, None] == 0, -1e4)
