"""Where each record of a data set is in its file, and which text it is: to name a record to its owner alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privtune.device.data.records import Records


@dataclass(frozen=True, kw_only=True)
class RecordLines:
    """N records in the order of their file.

    unit: what `number_N` counts: line, row or record.
    number_N: place of each, from 1; int64.
    text_N: names the text itself among equal ones, whatever line it is on; uint64, private.
    """

    unit: str
    number_N: npt.NDArray[np.int64]
    text_N: npt.NDArray[np.uint64]


def lines_of(records: Records) -> RecordLines:
    """The lines of records as they were read, before anything is replaced in them."""
    seen: Counter[str] = Counter()
    texts = []
    for record in records:
        content = repr((record.text, record.text2, record.prompt, record.messages))
        digest = hashlib.blake2b(f"{seen[content]} {content}".encode("utf-8", "surrogatepass"), digest_size=8)
        texts.append(int.from_bytes(digest.digest(), "big"))
        seen[content] += 1
    return RecordLines(
        unit=records.unit,
        number_N=np.array([record.number for record in records], dtype=np.int64),
        text_N=np.array(texts, dtype=np.uint64),
    )
