"""The floor that language alone sets: guesses of an attacker who sees nothing but lengths.

N secret tokens, F frequent candidates, P distinct pairs (position, tokens left).
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from privtune.device.audit.attacker_text import Bigrams, PublicText

_FREQUENT = 1000  # candidates: rarer ones are never the best guess


class LengthsOnly:
    """Guesses of an attacker who knows only how long each text is: the posterior under the bigram model."""

    def __init__(self, public: PublicText) -> None:
        self._public = public
        order = public.counts_V.argsort(descending=True, stable=True)[:_FREQUENT]
        self._ids_F = public.ids_V[order]

    @cached_property
    def _chain(self) -> tuple[Tensor, Tensor, Tensor]:
        """Start distribution, transitions from row to column, and probability of the end after each; not logs."""
        ids_F, records = self._ids_F, self._public.records
        size = 1 + max(int(self._public.ids_V.max()), max(int(ids_T.max()) for ids_T in records))
        bigrams = Bigrams(self._public, size)
        first, last = (torch.tensor(int(np.bincount([ids_T[end] for ids_T in records]).argmax())) for end in (0, -1))
        return (
            bigrams.log_prob(first, ids_F).double().exp(),
            bigrams.log_prob(ids_F.unsqueeze(1), ids_F.unsqueeze(0)).double().exp(),
            bigrams.log_prob(ids_F, last).double().exp(),
        )

    def guesses(self, record_N: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The best ids for each token, and the best content words, both (N, count). record_N: sorted record of each."""
        lengths_B = torch.bincount(record_N)
        place_N = torch.arange(len(record_N)) - torch.searchsorted(record_N, record_N)
        left_N = lengths_B[record_N] - 1 - place_N
        start_F, moves_FF, end_F = self._chain
        before, after = [start_F], [end_F]
        for _ in range(int(lengths_B.max()) - 1 if len(lengths_B) else 0):
            before.append(_even(before[-1] @ moves_FF))
            after.append(_even(moves_FF @ after[-1]))
        pairs, inverse_N = torch.unique(torch.stack([place_N, left_N], dim=1), dim=0, return_inverse=True)
        chance_PF = torch.stack(before)[pairs[:, 0]] * torch.stack(after)[pairs[:, 1]]
        content_F = ~torch.isin(self._ids_F, self._public.frequent_ids)
        return self._best(chance_PF, count)[inverse_N], self._best(chance_PF * content_F, count)[inverse_N]

    def _best(self, chance_PF: Tensor, count: int) -> Tensor:
        best = chance_PF.topk(min(count, len(self._ids_F)))
        return torch.where(best.values > 0, self._ids_F[best.indices], -1)


@lru_cache(maxsize=1)
def lengths_only(public: PublicText) -> LengthsOnly:
    """One for all figures of a run: its transitions take a second to compute."""
    return LengthsOnly(public)


def _even(chance_F: Tensor) -> Tensor:
    return chance_F / chance_F.sum()
