"""Released rows as an attacker has them, packed without padding, and the same with the truth.

B records, T tokens, R released rows of all records together, N secret tokens (all but the special ones, which are
public), D hidden width. A row usually stands for one token; a mechanism that pools puts several tokens in one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Releases of B records as the cloud has them, packed without padding, in record order.

    y_RD: released rows, float32.
    lengths_B: rows of each record.
    row_N: the released row that each secret token is part of.
    slot_N: its number among the secret tokens of that row; always 0 if a row is one token.

    Lengths and layout are public: they cross the wire, or follow from the mechanism's settings.
    """

    y_RD: Tensor
    lengths_B: Tensor
    row_N: Tensor
    slot_N: Tensor

    def __len__(self) -> int:
        return len(self.lengths_B)

    @cached_property
    def record_R(self) -> Tensor:
        """The record of each row."""
        return torch.repeat_interleave(torch.arange(len(self.lengths_B)), self.lengths_B)

    @cached_property
    def place_R(self) -> Tensor:
        """The number of each row in its record."""
        starts_B = self.lengths_B.cumsum(0) - self.lengths_B
        return torch.arange(len(self.y_RD)) - starts_B[self.record_R]

    @cached_property
    def record_N(self) -> Tensor:
        """The record of each secret token."""
        return self.record_R[self.row_N]

    @cached_property
    def fill_R(self) -> Tensor:
        """The number of secret tokens in each row."""
        return torch.bincount(self.row_N, minlength=len(self.y_RD))

    @cached_property
    def slots(self) -> int:
        """The largest number of secret tokens in one row."""
        return int(self.slot_N.max()) + 1 if len(self.slot_N) else 1

    def padded(self) -> tuple[Tensor, Tensor]:
        """y_BTD padded with zeros on the right, and mask_BT (1 = released row)."""
        y_BTD = torch.zeros(len(self), int(self.lengths_B.max()), self.y_RD.shape[1])
        y_BTD[self.record_R, self.place_R] = self.y_RD
        mask_BT = (torch.arange(y_BTD.shape[1]) < self.lengths_B.unsqueeze(1)).long()
        return y_BTD, mask_BT

    def by_length(self) -> tuple[Seen, Tensor, Tensor]:
        """The same with the shortest records first, and where each of its records and tokens was before.

        Its batches hold next to no padding.
        """
        order_B = self.lengths_B.argsort(stable=True)
        rank_B = order_B.argsort()
        order_R, order_N = (rank_B[record].argsort(stable=True) for record in (self.record_R, self.record_N))
        sorted_seen = Seen(
            y_RD=self.y_RD[order_R],
            lengths_B=self.lengths_B[order_B],
            row_N=order_R.argsort()[self.row_N[order_N]],
            slot_N=self.slot_N[order_N],
        )
        return sorted_seen, order_B, order_N

    def batches(self, size: int) -> Iterator[Seen]:
        """The same, `size` records at a time."""
        row_ends = [0, *self.lengths_B.cumsum(0).tolist()]
        unit_ends = torch.searchsorted(self.row_N, torch.tensor(row_ends)).tolist()
        for start in range(0, len(self), size):
            end = min(start + size, len(self))
            rows, units = slice(row_ends[start], row_ends[end]), slice(unit_ends[start], unit_ends[end])
            yield Seen(
                y_RD=self.y_RD[rows],
                lengths_B=self.lengths_B[start:end],
                row_N=self.row_N[units] - row_ends[start],
                slot_N=self.slot_N[units],
            )


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Releases with the truth, to build an attack on public text and to score it. ids_N: the secret tokens."""

    seen: Seen
    ids_N: Tensor

    def first(self, records: int) -> Observed:
        """The first `records` of them."""
        seen = next(self.seen.batches(records))
        return Observed(seen=seen, ids_N=self.ids_N[: len(seen.row_N)])


def packed(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Observed:
    """Records as one; of each its released rows, the row that each of its secret tokens is part of, and their ids."""
    lengths_B = torch.tensor([len(rows_TD) for rows_TD, _, _ in parts])
    starts = (lengths_B.cumsum(0) - lengths_B).tolist()
    row_N = torch.cat([group + start for (_, group, _), start in zip(parts, starts, strict=True)])
    first_N = torch.searchsorted(row_N, row_N)  # rows are in order, so equal ones are adjacent
    seen = Seen(
        y_RD=torch.cat([rows_TD for rows_TD, _, _ in parts]),
        lengths_B=lengths_B,
        row_N=row_N,
        slot_N=torch.arange(len(row_N)) - first_N,
    )
    return Observed(seen=seen, ids_N=torch.cat([ids for _, _, ids in parts]))
