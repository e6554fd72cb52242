"""EIA-1 by frequency analysis: what an attacker reads who does not know which symbol stands for which words.

The oldest attack on substitution: equal symbols are recognised as equal in all records, the most frequent one is taken
for the most frequent word of the public text, and so on. All tables of this product are public, so an attacker has no
need of it; it bounds what keeping a table secret would be worth.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from privtune.device.audit.attacks.attack import GUESSES, Attack, Lab, Say
from privtune.device.audit.observed import Seen
from privtune.shared.errors import InvalidInput


class Frequency(Attack):
    """The attack, for mechanisms that have a `Channel`, of which it only takes which symbols are equal."""

    name: ClassVar[str] = "EIA-1"
    kind: ClassVar[Literal["inversion", "attribute"]] = "inversion"

    def __init__(self) -> None:
        super().__init__("adaptive")  # what is built on clean vectors is shared among mechanisms, and this is not

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        if lab.channel is None:
            raise InvalidInput("the releases of this mechanism are vectors, of which no two are equal")
        self._read = lab.channel.read
        public = lab.public
        self._ids_V = public.ids_V[public.counts_V.argsort(descending=True, stable=True)]

    def _attack(self, seen: Seen) -> Tensor:
        symbols, inverse_N, counts_S = torch.unique(self._read(seen), return_inverse=True, return_counts=True)
        rank_S = torch.empty(len(symbols), dtype=torch.int64)
        rank_S[counts_S.argsort(descending=True, stable=True)] = torch.arange(len(symbols))
        # After the word of the same rank those beside it: 0, 1, -1, 2, -2, ...
        step_K = torch.arange(GUESSES)
        step_K = torch.where(step_K % 2 == 1, 1, -1) * ((step_K + 1) // 2)
        rank_NK = rank_S[inverse_N].unsqueeze(1) + step_K
        inside_NK = (rank_NK >= 0) & (rank_NK < len(self._ids_V))
        return torch.where(inside_NK, self._ids_V[rank_NK.clamp(0, len(self._ids_V) - 1)], -1)

    def _tensors(self) -> dict[str, Tensor]:
        return {"ids_V": self._ids_V}

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self._fit(lab, 0, self._say)
