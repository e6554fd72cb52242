"""Filler that makes records of different lengths look alike to the cloud.

The rows of filler are ordinary words, drawn at random by their public frequency, and pass through bottom, noise and
codec as the words of the text do; no mask and no position says which they are. They stand before what closes a text
(`[SEP]`, the end of text), whose place would give the length away otherwise.

    end     [CLS] the text filler filler [SEP]    read at the first row, or on the device, which drops the filler
    front   <s> filler filler the text            read at the last row, by a classifier that trains in the cloud

Not covered: the places of special tokens inside a text (pairs, turns of a conversation), and what an attacker who reads
the words makes of them: filler is no sentence. T tokens of a text, M rows with filler, U usable ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from privtune.device.data.encode import IntArray
from privtune.device.noise.base import Mechanism
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.public_tables import PublicTables
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage

_CLOSING = 4  # tokens that end a text at most, a special one first: "<|im_end|>", a line break
Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How a job's records are padded.

    lengths: rows that a record may have, ascending; no record is longer than the last.
    front: filler stands before the text.
    dropped: every row comes back to the device, which leaves out those of filler.
    context: the public side of the model, for the words.
    """

    lengths: tuple[int, ...]
    front: bool
    dropped: bool
    context: NoiseContext

    @classmethod
    def of(cls, spec: JobSpec, package: BottomPackage, mechanism: Mechanism) -> Padding | None:
        """The job's padding; None: its records keep their lengths."""
        lengths = spec.train.padded(package.max_positions)
        if not lengths:
            return None
        read_here = spec.tail > 0
        return cls(
            lengths=lengths,
            front=not read_here and package.readout == "last",
            dropped=read_here and not mechanism.shortens,
            context=mechanism.context,
        )

    @property
    def fingerprint(self) -> str:
        """Part of what identifies the noise distribution."""
        return f" padded to {self.lengths} {'in front' if self.front else 'at the end'}"

    def rows(self, lengths_R: Lengths) -> Lengths:
        """How many rows records of these lengths have with their filler."""
        return np.array(self.lengths, dtype=np.int64)[np.searchsorted(self.lengths, lengths_R)]

    def place(self, ids_T: IntArray) -> int:
        """Before which token of a record its filler stands."""
        special_T, last = np.isin(ids_T, self._special), len(ids_T) - 1
        if self.front:
            return next((at for at in range(last) if not special_T[at]), last)
        closing = next((at for at in range(last, max(last - _CLOSING, 0), -1) if special_T[at]), len(ids_T))
        while closing > 1 and special_T[closing - 1]:
            closing -= 1
        return closing

    def fill(self, ids_T: IntArray, source: NoiseSource) -> IntArray:
        """ids_M of a record with freshly drawn filler."""
        more = int(self.rows(np.array([len(ids_T)]))[0]) - len(ids_T)
        drawn = np.searchsorted(self._cumulative_U, source.uniform(more).numpy(), side="right")
        words = self._usable_U[np.minimum(drawn, len(self._usable_U) - 1)]
        filled: IntArray = np.insert(ids_T, self.place(ids_T), words).astype(np.int32)
        return filled

    def own(self, ids_T: IntArray) -> Lengths:
        """The row of each token of a record."""
        at, more = self.place(ids_T), int(self.rows(np.array([len(ids_T)]))[0]) - len(ids_T)
        row_T = np.arange(len(ids_T))
        return row_T + more * (row_T >= at)

    @cached_property
    def _special(self) -> Lengths:
        return np.array(sorted(self.context.special_ids), dtype=np.int64)

    @cached_property
    def _usable_U(self) -> Lengths:
        return self.context.usable_ids.numpy()

    @cached_property
    def _cumulative_U(self) -> npt.NDArray[np.float64]:
        return np.cumsum(PublicTables(self.context, "embedding").frequency_U)
