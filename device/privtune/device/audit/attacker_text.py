"""The attacker's own text: which tokens it considers, how frequent they are, and which follows which.

V candidates (a sorted subset of the vocabulary), N running tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.data.encode import IntArray
from privtune.shared.errors import InvalidInput
from privtune.shared.wording import counted

_WINDOW = 16  # batches that are sorted by length together
CONTENT_AFTER = 100  # ids less frequent than the 100 most frequent ones count as content words


class PublicText:
    """Token-id records that the attacker has; never attacked ones.

    Args:
        records: rows of ids, special tokens included.
        special_ids: ids that are public wherever they occur.
        labels: an attribute of each record, for attribute inference.
        candidates: ids that the attacker considers; None: those in `records`, which saves most of the work (other
            tokens count as never found).

    Raises InvalidInput without records or without ordinary tokens.
    """

    def __init__(
        self,
        records: Sequence[IntArray],
        special_ids: frozenset[int],
        *,
        labels: NDArray[np.int64] | None = None,
        candidates: Tensor | None = None,
    ) -> None:
        if not records:
            raise InvalidInput("the attacks need public text to build on, and there is none")
        self.records, self.labels, self.special_ids = tuple(records), labels, special_ids
        flat_N = torch.from_numpy(np.concatenate(self.records).astype(np.int64))
        self.ids_N = flat_N[~torch.isin(flat_N, torch.tensor(sorted(special_ids), dtype=torch.int64))]
        if not len(self.ids_N):
            raise InvalidInput("the public text holds no ordinary token")
        self.ids_V = torch.unique(self.ids_N if candidates is None else candidates)

    @cached_property
    def lengths_B(self) -> NDArray[np.int64]:
        """Ids of each record."""
        return np.array([len(ids_T) for ids_T in self.records], dtype=np.int64)

    @cached_property
    def counts_V(self) -> Tensor:
        """How often each candidate occurs, float64."""
        place_N = self.index(self.ids_N)
        return torch.bincount(place_N[place_N >= 0], minlength=len(self.ids_V)).double()

    @cached_property
    def log_prior_V(self) -> Tensor:
        """Log of the smoothed frequency of each candidate, float32."""
        once = float((self.counts_V == 1).sum())  # Good-Turing: the total share of unseen ids
        smoothed_V = self.counts_V + max(once, 1.0) / len(self.ids_V)
        return (smoothed_V / smoothed_V.sum()).log().float()

    @cached_property
    def frequent_ids(self) -> Tensor:
        """The ids that don't count as content words: the most frequent ones of the public text, most frequent first."""
        order = self.counts_V.argsort(descending=True, stable=True)[:CONTENT_AFTER]
        frequent: Tensor = self.ids_V[order]
        return frequent

    def index(self, ids_N: Tensor) -> Tensor:
        """The candidate number of each id; -1 if it is no candidate."""
        place_N = torch.searchsorted(self.ids_V, ids_N).clamp(max=len(self.ids_V) - 1)
        return torch.where(self.ids_V[place_N] == ids_N, place_N, -1)

    def check_disjoint(self, attacked: Sequence[IntArray]) -> None:
        """Raise InvalidInput if an attacked record is in the attacker's text: such figures would mean nothing."""
        mine = {_digest(ids_T) for ids_T in self.records}
        both = sum(_digest(ids_T) in mine for ids_T in attacked)
        if both:
            raise InvalidInput(
                f"{both} of {counted(len(attacked), 'attacked record')} are also in the attacker's public text, "
                "so the audit "
                "would measure memory; remove them from one of the two"
            )


def batches_of_length(lengths_B: NDArray[np.int64], size: int, rng: np.random.Generator) -> list[Tensor]:
    """Record numbers in random batches of at most `size` records of similar length, which keeps padding small.

    Records are sorted by length only within windows of a few batches, so that batches differ from epoch to epoch.
    """
    order = rng.permutation(len(lengths_B))
    batches = []
    for start in range(0, len(order), size * _WINDOW):
        window = order[start : start + size * _WINDOW]
        window = window[np.argsort(lengths_B[window], kind="stable")]
        batches += [torch.from_numpy(window[begin : begin + size]) for begin in range(0, len(window), size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def without_overlap(records: Sequence[IntArray], attacked: Sequence[IntArray]) -> list[int]:
    """Indices of the records that are not among the attacked ones."""
    known = {_digest(ids_T) for ids_T in attacked}
    return [index for index, ids_T in enumerate(records) if _digest(ids_T) not in known]


def _digest(ids_T: IntArray) -> bytes:
    return hashlib.sha256(np.asarray(ids_T, dtype=np.int64).tobytes()).digest()


class Bigrams:
    """P(t | previous) over ids of public text: Witten-Bell mixture of pair and single frequencies, in logs.

    Special tokens count as previous tokens, so the first word of a text has its own distribution.
    """

    def __init__(self, public: PublicText, vocabulary: int) -> None:
        self._size = vocabulary
        flat = [np.asarray(ids_T, dtype=np.int64) for ids_T in public.records]
        before = torch.from_numpy(np.concatenate([ids_T[:-1] for ids_T in flat]))
        after = torch.from_numpy(np.concatenate([ids_T[1:] for ids_T in flat]))
        keys, counts = torch.unique(before * vocabulary + after, return_counts=True)
        self._keys, self._counts = keys, counts.double()
        self._total_V = torch.bincount(before, minlength=vocabulary).double()
        self._kinds_V = torch.bincount(keys // vocabulary, minlength=vocabulary).double()
        # Frequencies with the special tokens that may follow; ids never seen keep their Good-Turing share.
        single_V = torch.full((vocabulary,), float(public.log_prior_V.min())).double().exp()
        single_V[public.ids_V] = public.log_prior_V.double().exp()
        self._single_V = single_V / single_V.sum()

    def log_prob(self, before: Tensor, after: Tensor) -> Tensor:
        """log P(after | before), elementwise over broadcast int64 tensors; float32."""
        before, after = torch.broadcast_tensors(before, after)  # type: ignore[no-untyped-call]
        key = before * self._size + after
        place = torch.searchsorted(self._keys, key).clamp(max=len(self._keys) - 1)
        pair = torch.where(self._keys[place] == key, self._counts[place], 0.0)
        total, kinds = self._total_V[before], self._kinds_V[before]
        mixed = (pair + kinds.clamp(min=1.0) * self._single_V[after]) / (total + kinds.clamp(min=1.0))
        return mixed.log().float()
