"""The public table behind ids: where a mechanism sends one of few public vectors, it sends the number of its row.

The vector determines the id and the id, with the table, the vector: neither reveals more than the other.
K rows, P positions, D width, N ids.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from privtune.shared.codec import FloatArray, decode, encode
from privtune.shared.errors import FrameCorrupt
from privtune.shared.wire import TABLE, Message, tensor_message
from privtune.split.v1 import split_pb2 as pb

MAX_ROWS = 1 << 16  # ids are of two bytes at most
MAX_TABLE_BYTES = 32 << 20  # a larger table would outweigh the vectors that it saves
_FEW = 16  # columns that tell rows apart, as a rule: a long table has hundreds of positions
IdArray = npt.NDArray[np.int64]


def _differ(rows_KD: FloatArray, offset_D: FloatArray, columns: int) -> bool:
    """Whether the first so many columns of these rows differ in bf16, the coarsest codec of releases."""
    raw, size = encode(rows_KD[:, :columns] + offset_D[:columns], "bf16"), 2 * min(columns, rows_KD.shape[1])
    return len({raw[at : at + size] for at in range(0, len(raw), size)}) == len(rows_KD)


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicTable:
    """What ids stand for.

    rows_KD: float32; id k is row k.
    offsets_PD: float32; what a row's position in its record adds. Positions from P on add the last. May be empty.
    placed: ids below it get the offset of their position added, the others do not.
    """

    rows_KD: FloatArray
    offsets_PD: FloatArray
    placed: int = 0

    @property
    def width(self) -> int:
        """D."""
        return int(self.rows_KD.shape[1])

    @property
    def nbytes(self) -> int:
        """Size of all rows and offsets."""
        return self.rows_KD.nbytes + self.offsets_PD.nbytes

    @cached_property
    def fits(self) -> bool:
        """Whether ids of two bytes reach all rows, a cloud takes the table, and ids say no more than vectors do.

        They would where two of the placed rows are one vector at some position, once offsets are added and the sums
        rounded as they would be sent.
        """
        if len(self.rows_KD) > MAX_ROWS or self.nbytes > MAX_TABLE_BYTES:
            return False
        rows_KD = self.rows_KD[: self.placed]
        places = self.offsets_PD if len(self.offsets_PD) else np.zeros((1, self.width), np.float32)
        return all(_differ(rows_KD, offset_D, _FEW) or _differ(rows_KD, offset_D, self.width) for offset_D in places)

    @property
    def codec(self) -> str:
        """The codec of ids."""
        return "ids8" if len(self.rows_KD) <= 256 else "ids16"

    @cached_property
    def sha256(self) -> str:
        """Hex hash of shapes, numbers and rows."""
        digest = hashlib.sha256(repr((self.rows_KD.shape, self.offsets_PD.shape, self.placed)).encode())
        for part in (self.rows_KD, self.offsets_PD):
            digest.update(np.ascontiguousarray(part, dtype="<f4").tobytes())
        return digest.hexdigest()

    def vectors(self, ids_N: IdArray, places_N: IdArray) -> FloatArray:
        """h_ND, float32. places_N: each row's position in its record. Raises FrameCorrupt for an id without a row."""
        if len(ids_N) and (ids_N.min() < 0 or ids_N.max() >= len(self.rows_KD)):
            raise FrameCorrupt(f"an id is not in the job's table of {len(self.rows_KD)} rows")
        h_ND: FloatArray = self.rows_KD[ids_N]
        if len(self.offsets_PD):
            moved_N = ids_N < self.placed
            h_ND[moved_N] += self.offsets_PD[np.minimum(places_N[moved_N], len(self.offsets_PD) - 1)]
        return h_ND

    def of_record(self, ids_R1: FloatArray) -> FloatArray:
        """h_RD of a whole record, from its decoded ids."""
        return self.vectors(ids_R1[:, 0].astype(np.int64), np.arange(len(ids_R1)))

    def to_message(self) -> Message:
        """The message that hands the table over, once per job. Raises NonFinite for NaN or infinity."""
        message = tensor_message(TABLE, 0, 0, np.concatenate([self.rows_KD, self.offsets_PD]), "fp32")
        message.table = pb.TableHeader(placed=self.placed, offsets=len(self.offsets_PD), sha256=self.sha256)
        return message

    @classmethod
    def from_message(cls, message: Message) -> PublicTable:
        """The table of a message. Raises FrameCorrupt for one that is none, NonFinite for NaN or infinity."""
        header = message.table
        if header is None or message.codec != "fp32":
            raise FrameCorrupt("a table came without its header, or in another codec than fp32")
        count = message.rows - header.offsets
        if not 0 < count <= MAX_ROWS or header.placed > count or len(message.payload) > MAX_TABLE_BYTES:
            raise FrameCorrupt(f"{message.rows} rows with {header.offsets} offsets are no table of ids")
        all_RD = message.tensor()
        table = cls(rows_KD=all_RD[:count], offsets_PD=all_RD[count:], placed=header.placed)
        if table.sha256 != header.sha256:
            raise FrameCorrupt("a table has another hash than its header says")
        return table


def released_vectors(
    payload: bytes | bytearray,
    lengths_B: IdArray,
    *,
    width: int,
    codec: str,
    table: PublicTable | None,
    past_B: IdArray | None = None,
) -> FloatArray:
    """h_MD of released rows, record after record, rounded as the codec does; ids become the vectors of their table.

    past_B: how many rows of each record came earlier; None: none of any. Raises FrameCorrupt, NonFinite as `decode`.
    """
    rows = int(lengths_B.sum())
    if table is None:
        return decode(payload, rows, width, codec)
    ids_M = decode(payload, rows, 1, table.codec)[:, 0].astype(np.int64)
    firsts_B = lengths_B.cumsum() - lengths_B - (0 if past_B is None else past_B)
    h_MD = table.vectors(ids_M, np.arange(rows) - np.repeat(firsts_B, lengths_B))
    return decode(encode(h_MD, codec), rows, width, codec)
