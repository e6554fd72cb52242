"""A micro-batch in parts: where memory runs out for all of its records at once, they are computed in halves or less.

Numbers are those of the whole, up to rounding, but for dropout: each part draws its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from privtune.cloud.compute.out_of_memory import within_memory
from privtune.shared.errors import CloudOutOfMemory

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some records of a micro-batch, or all.

    key: names it among all parts of the step.
    first: the place of its first record in the micro-batch.
    h_BTD, mask_BT: vectors of its records, and which rows of them are real.
    readout_N: flat positions b * T + t of their read-outs.
    place_N: places of these read-outs among those of the micro-batch.
    """

    key: tuple[int, ...]
    first: int = 0
    h_BTD: Tensor
    mask_BT: Tensor
    readout_N: Tensor
    place_N: Tensor

    @classmethod
    def whole(cls, micro_batch: int, h_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor) -> Part:
        """All records of a micro-batch."""
        place_N = torch.arange(len(readout_N))
        return cls(key=(micro_batch,), h_BTD=h_BTD, mask_BT=mask_BT, readout_N=readout_N, place_N=place_N)

    def split(self, count: int) -> list[Part]:
        """The records in `count` parts, without those that nothing is read of."""
        if count == 1:
            return [self]
        found, (records, longest) = [], self.mask_BT.shape
        for number, some in enumerate(torch.arange(records).tensor_split(count)):
            first, end = int(some[0]), int(some[-1]) + 1
            chosen_N = (self.readout_N >= first * longest) & (self.readout_N < end * longest)
            if chosen_N.any():
                part = Part(
                    key=(*self.key, count, number),
                    first=first,
                    h_BTD=self.h_BTD[first:end],
                    mask_BT=self.mask_BT[first:end],
                    readout_N=self.readout_N[chosen_N] - first * longest,
                    place_N=self.place_N[chosen_N],
                )
                found.append(part)
        return found


def in_smaller_parts(records: int, compute: Callable[[int], T], parts: int = 1) -> T:
    """compute(parts), in twice as many parts whenever memory runs out. Raises `CloudOutOfMemory` if one record is too
    much.
    """
    while True:
        try:
            return within_memory(compute, parts)
        except CloudOutOfMemory:
            if parts >= records:
                raise
            parts = min(2 * parts, records)


def joined(parts: Sequence[Part], outs: Sequence[Tensor]) -> Tensor:
    """out_ND of the micro-batch from that of all its parts."""
    return torch.cat(list(outs))[torch.cat([part.place_N for part in parts]).argsort()]
