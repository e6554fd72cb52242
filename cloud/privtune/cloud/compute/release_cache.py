"""Releases that a job's device has uploaded, kept in memory so that later epochs only refer to them.

A release is vectors, or ids of the job's public table; ids become the very vectors that the device would have sent.

Bounded in bytes: the oldest releases are evicted, and the cloud asks the device to resend those records. The device
repeats the identical bytes from its own store, so a resend reveals nothing new.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privtune.cloud.compute.memory_budget import MemoryBudget, OwnersBudget
from privtune.cloud.compute.turns import NOBODY
from privtune.shared.codec import row_bytes
from privtune.shared.errors import FrameCorrupt
from privtune.shared.public_table import IdArray, PublicTable, released_vectors
from privtune.shared.wire import Message, readout_positions
from privtune.split.v1 import split_pb2 as pb

MAX_RECORDS_IN_A_MICRO_BATCH = 65_536


class NotHeld(Exception):
    """Some of the records named here are not in the cache; the device must send them inline."""


@dataclass(frozen=True, kw_only=True)
class PaddedBatch:
    """A micro-batch ready for the top.

    h_BTD: float32 vectors, padded on the right with zeros.
    mask_BT: 1 where a row is real, 0 where it is padding.
    readout_N: flat positions b * T + t at which the top's output is read.
    """

    h_BTD: Tensor
    mask_BT: Tensor
    readout_N: Tensor


class ReleaseCache:
    """Encoded releases of one job by record handle: vectors of `width` values, or ids; `max_bytes` in all.

    codec: of vectors.
    budget: shared by all jobs; None: this job's own.
    table_sha256: of the table that ids stand for; "": vectors are sent.
    """

    def __init__(
        self,
        width: int,
        codec: str,
        max_bytes: int,
        budget: OwnersBudget | None = None,
        table_sha256: str = "",
    ) -> None:
        self._budget = budget or MemoryBudget(max_bytes).of(NOBODY)
        self.width, self._codec, self._max_bytes = width, codec, max_bytes
        self.vector_bytes = row_bytes(width, codec)
        self.table_sha256 = table_sha256
        self._table: PublicTable | None = None
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0

    def unpack(self, message: Message) -> PaddedBatch:
        """Store a FORWARD message's inline records and build the padded batch.

        Raises `FrameCorrupt` for a header that contradicts itself or the tensor, `NotHeld` when a record that was
        not sent inline is not in the cache.
        """
        header = message.forward
        if header is None:
            raise FrameCorrupt("a forward frame came without its header")
        lengths_B = np.fromiter(header.lengths, dtype=np.int64)
        self._check(header, lengths_B, message)
        h_MD = self._vectors(b"".join(self._rows(header, lengths_B, message)), lengths_B)
        return _pad(h_MD, torch.from_numpy(lengths_B), header)

    def unpack_rows(self, message: Message) -> PaddedBatch:
        """The padded batch of a FORWARD message that is all inline; nothing is stored. Raises `FrameCorrupt`."""
        header = message.forward
        if header is None or not all(header.inlined):
            raise FrameCorrupt("new rows of a text must be sent inline, with their header")
        lengths_B = np.fromiter(header.lengths, dtype=np.int64)
        self._check(header, lengths_B, message)
        past_B = np.zeros_like(lengths_B)
        past_B[: len(header.past)] = header.past
        return _pad(self._vectors(message.payload, lengths_B, past_B), torch.from_numpy(lengths_B), header)

    @property
    def needs_table(self) -> bool:
        """Whether ids are announced whose table is not here."""
        return bool(self.table_sha256) and self._table is None

    def take_table(self, table: PublicTable) -> None:
        """From here on ids stand for this table's rows. Raises `FrameCorrupt` for another than was announced."""
        if table.sha256 != self.table_sha256 or table.width != self.width:
            raise FrameCorrupt("a table came that the handshake did not announce")
        self._budget.hold(table, table.nbytes)
        self._table = table

    def shed(self) -> None:
        """Free the older half for others; devices send these records again."""
        for _ in range(-(-len(self._held) // 2)):
            self._size -= len(self._held.popitem(last=False)[1])
        self._budget.hold(self, self._size)

    def _check(self, header: pb.ForwardHeader, lengths_B: IdArray, message: Message) -> None:
        records = len(header.record_ids)
        if not 0 < records <= MAX_RECORDS_IN_A_MICRO_BATCH or not len(lengths_B) == len(header.inlined) == records:
            raise FrameCorrupt("a forward frame's record ids, lengths and inline flags do not fit together")
        if len(set(header.record_ids)) < records:
            raise FrameCorrupt("a forward frame names a record twice")
        if lengths_B.min() < 1:
            raise FrameCorrupt("a forward frame names a record without rows")
        width, codec = self._form()
        if message.codec != codec or message.width != width:
            raise FrameCorrupt(
                f"rows of width {message.width} in {message.codec or 'no codec'} came; this job uses {width} in {codec}"
            )
        if message.rows != int(lengths_B[np.fromiter(header.inlined, dtype=bool)].sum()):
            raise FrameCorrupt("a forward frame's rows do not add up to its records' lengths")

    def _form(self) -> tuple[int, str]:
        """Width and codec of the rows that come."""
        if not self.table_sha256:
            return self.width, self._codec
        if self._table is None:
            raise FrameCorrupt("ids came before the table that they stand for")
        return 1, self._table.codec

    def _vectors(self, payload: bytes | bytearray, lengths_B: IdArray, past_B: IdArray | None = None) -> Tensor:
        """h_MD, rounded as the codec does. past_B: how many rows of each record came earlier; None: none of any."""
        h_MD = released_vectors(
            payload, lengths_B, width=self.width, codec=self._codec, table=self._table, past_B=past_B
        )
        return torch.from_numpy(h_MD)

    def _rows(self, header: pb.ForwardHeader, lengths_B: IdArray, message: Message) -> list[bytes]:
        payload, offset, rows = memoryview(message.payload), 0, []
        missing, bytes_a_row = False, row_bytes(message.width, message.codec)
        for record, length, inlined in zip(header.record_ids, lengths_B.tolist(), header.inlined, strict=True):
            size = length * bytes_a_row
            if inlined:
                self._keep(record, bytes(payload[offset : offset + size]))
                offset += size
            held = self._held.get(record)
            if held is None:
                missing = True
            elif len(held) != size:
                raise FrameCorrupt(f"record {record} is named with {length} rows but was released with another number")
            else:
                rows.append(held)
        self._evict()
        if missing:
            raise NotHeld
        return rows

    def _keep(self, record: int, encoded: bytes) -> None:
        self._size += len(encoded) - len(self._held.pop(record, b""))
        self._held[record] = encoded

    def _evict(self) -> None:
        while self._held and not (self._size <= self._max_bytes and self._budget.fits(self, self._size)):
            self._size -= len(self._held.popitem(last=False)[1])
        self._budget.hold(self, self._size)


def _pad(h_MD: Tensor, lengths_B: Tensor, header: pb.ForwardHeader) -> PaddedBatch:
    rows, longest = len(lengths_B), int(lengths_B.max())
    readout_N = torch.from_numpy(readout_positions(header))
    if len(readout_N) == 0 or int(readout_N.max()) >= rows * longest:
        raise FrameCorrupt("a forward frame reads out a position that is not in it")
    if len(torch.unique(readout_N)) < len(readout_N):
        raise FrameCorrupt("a forward frame reads out a position twice")
    mask_BT = torch.arange(longest)[None, :] < lengths_B[:, None]
    if not bool(mask_BT.flatten()[readout_N].all()):
        raise FrameCorrupt("a forward frame reads out padding")
    h_BTD = torch.zeros(rows, longest, h_MD.shape[1])
    h_BTD[mask_BT] = h_MD
    return PaddedBatch(h_BTD=h_BTD, mask_BT=mask_BT.long(), readout_N=readout_N)
