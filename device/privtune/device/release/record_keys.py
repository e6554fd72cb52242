"""The key under which a record's release is stored: its content, and its number among records of equal content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privtune.shared.errors import InvalidInput


@dataclass(frozen=True)
class RecordKey:
    """The key of one record in the store of releases.

    index: how many records of the same content come before it in its data set (uint64).
    content: `content_fingerprint` of its token ids, so that an edited record is a new one.
    """

    index: int
    content: bytes

    def packed(self) -> bytes:
        """The key as it is stored: 8 bytes of index, then the fingerprint."""
        if not 0 <= self.index < 2**64:
            raise InvalidInput(f"a record's index must fit 64 bits, not {self.index}")
        return self.index.to_bytes(8, "big") + self.content

    @classmethod
    def unpacked(cls, stored: bytes) -> RecordKey:
        """The key that was `packed`."""
        return cls(int.from_bytes(stored[:8], "big"), stored[8:])


def content_fingerprint(ids: Sequence[int]) -> bytes:
    """16 bytes over a record's token ids, as they are released: after truncation."""
    return hashlib.sha256(b"".join(int(i).to_bytes(8, "big", signed=True) for i in ids)).digest()[:16]


def record_keys(ids: Sequence[npt.NDArray[np.int32]]) -> list[RecordKey]:
    """The key of each record of a data set.

    A key does not depend on the record's place: an owner who shuffles or samples a file again gets the same releases,
    not fresh ones that could be averaged.
    """
    seen: Counter[bytes] = Counter()
    keys = []
    for ids_T in ids:
        content = content_fingerprint(ids_T.tolist())
        keys.append(RecordKey(seen[content], content))
        seen[content] += 1
    return keys
