"""Which records share a pass over a top, so that neither their number nor their padding decides what a pass takes."""

from __future__ import annotations

from collections.abc import Sequence

ROWS = 8192  # padded rows of a pass over several records
MOST_PADDED = 2  # a pass has at most this many times its records' own rows, padding included


def together(lengths: Sequence[int]) -> list[list[int]]:
    """Places of all records, in passes: all in one in their order where that keeps both bounds, else by length."""
    if _fits(len(lengths), max(lengths), sum(lengths)):
        return [list(range(len(lengths)))]
    found: list[list[int]] = []
    longest = own = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if found and _fits(len(found[-1]) + 1, longest, own + lengths[place]):
            found[-1].append(place)
            own += lengths[place]
        else:
            found.append([place])
            longest = own = lengths[place]
    return found


def _fits(records: int, longest: int, own: int) -> bool:
    padded = records * longest
    return records == 1 or (padded <= ROWS and padded <= MOST_PADDED * own)
