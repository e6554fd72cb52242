"""What the numbers of rows say of records, and what padding takes for hiding it.

R records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from privtune.device.plan.workload import Counts, Workload


@dataclass(frozen=True, kw_only=True)
class LengthsSeen:
    """Of a data set whose records have these lengths.

    different: lengths that there are.
    bits: that the length of a record tells of which record it is (Shannon entropy).
    alone: records that no other has the length of.
    """

    different: int
    bits: float
    alone: int

    @classmethod
    def of(cls, tokens_R: Counts) -> LengthsSeen:
        """tokens_R: of each record, as the cloud sees them."""
        _, count_L = np.unique(tokens_R, return_counts=True)
        share_L = count_L / len(tokens_R)
        bits = max(0.0, float(-(share_L * np.log2(share_L)).sum()))
        return cls(different=len(count_L), bits=bits, alone=int((count_L == 1).sum()))


@dataclass(frozen=True, kw_only=True)
class PaddingPrice:
    """What padding adds.

    without: what lengths would show without it.
    up, down: bytes more.
    """

    without: LengthsSeen
    up: int
    down: int

    @classmethod
    def of(cls, without: LengthsSeen, plain: Workload, padded: Workload) -> PaddingPrice:
        """plain, padded: the job without and with its padding."""
        return cls(without=without, up=padded.up - plain.up, down=padded.down - plain.down)
