"""From what the cloud answers to the final states that the head reads: as they came, or through the tail.

B records, T tokens, D hidden width, N read-out positions, M rows without padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privtune.device.data.batches import IndexArray
from privtune.device.data.encode import EncodedDataset
from privtune.device.model.head import HeadTrainer
from privtune.device.model.tail import States, padded
from privtune.device.release.perturber import Perturber, Released
from privtune.device.release.record_keys import RecordKey
from privtune.device.release.release_store import EncodedRelease, ReleaseStore
from privtune.shared.codec import decode, row_bytes
from privtune.shared.errors import FrameCorrupt, InternalError
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.wire import Message
from privtune.shared.wording import counted


class StateStore(ReleaseStore):
    """The cloud's states of a job's records: asked for once, so that later epochs need no answer of the cloud."""

    contents = "states"
    if_deleted = "asks the cloud for them again"


class FinalStates:
    """Reads the answers of a job's session.

    kept: where a tail's states are remembered; None: nowhere (a model in use).
    """

    def __init__(
        self,
        head: HeadTrainer,
        perturber: Perturber,
        package: BottomPackage,
        spec: JobSpec,
        kept: StateStore | None = None,
    ) -> None:
        self.head, self.perturber, self._kept = head, perturber, kept
        self._width, self._codec = package.hidden_size, spec.output_codec
        self._head_in_cloud, self._classes = spec.labels == "shared", spec.num_labels

    def wanted(self, data: EncodedDataset, indices: IndexArray) -> bool:
        """Whether the cloud has to be asked about these records."""
        if self._kept is None or self.head.tail is None:
            return True
        keys = self._keys(data, indices)
        return len(self._kept.sizes(keys)) < len(set(keys))

    def asked(self, readout_N: IndexArray) -> IndexArray:
        """The positions whose states the cloud is to send: those of the head, or none named: every row, for a tail."""
        return readout_N if self.head.tail is None else readout_N[:0]

    def states(self, data: EncodedDataset, indices: IndexArray, released: Released, answer: Message | None) -> States:
        """The input of the tail. answer: what just came, which is remembered; None where nothing was asked."""
        z_BTD, mask_BT = padded(self._rows(data, indices, released, answer), released.read_B)
        place = self.head.tail.begins_with if self.head.tail is not None else None
        clean_BTD = self.perturber.clean(data, indices, place) if place is not None else None
        return States(z_BTD=z_BTD, clean_BTD=clean_BTD, mask_BT=mask_BT)

    def out(
        self,
        data: EncodedDataset,
        indices: IndexArray,
        released: Released,
        readout_N: IndexArray,
        answer: Message | None,
    ) -> Tensor:
        """out_ND at the read-out positions, without dropout. answer: as in `states`."""
        if self.head.tail is not None:
            return self.head.out(self.states(data, indices, released, answer), torch.from_numpy(readout_N))
        if answer is None:
            raise InternalError("without a tail every micro-batch is answered by the cloud")
        width = self._classes if self._head_in_cloud else self._width
        return torch.from_numpy(answer.tensor(rows=len(readout_N), width=width))

    def logits(self, out_ND: Tensor) -> Tensor:
        """logits_NC without dropout. With shared labels the head is in the cloud, and its logits are what came."""
        return out_ND if self._head_in_cloud else self.head.logits(out_ND)

    def _rows(self, data: EncodedDataset, indices: IndexArray, released: Released, answer: Message | None) -> Tensor:
        """rows_MD of the micro-batch, record after record."""
        if answer is not None and (answer.width != self._width or answer.codec != self._codec):
            raise FrameCorrupt(f"the cloud sent states of width {answer.width} in {answer.codec or 'no codec'}")
        if self._kept is None:
            if answer is None:
                raise InternalError("states that are kept nowhere were not asked for")
            return torch.from_numpy(np.concatenate(_read(answer.tensor(rows=released.rows()), released)))
        keys = self._keys(data, indices)
        if answer is not None:
            self._kept.put_many(dict(zip(keys, self._by_record(answer, released), strict=True)))
        known = self._kept.get_many(keys)
        rows = [decode(known[key].data, known[key].rows, self._width, self._codec) for key in keys]
        return torch.from_numpy(np.concatenate(rows))

    def _by_record(self, answer: Message, released: Released) -> Iterator[EncodedRelease]:
        """The answer's bytes, cut into records."""
        size = row_bytes(self._width, self._codec)
        if len(answer.payload) != released.rows() * size:
            raise FrameCorrupt(f"the cloud sent {counted(answer.rows, 'state')} for {counted(released.rows(), 'row')}")
        every = np.frombuffer(answer.payload, dtype=np.uint8).reshape(-1, size)
        for rows in _read(every, released):
            yield EncodedRelease(len(rows), rows.tobytes())

    def _keys(self, data: EncodedDataset, indices: IndexArray) -> list[RecordKey]:
        every = self.perturber.keys(data)
        return [every[index] for index in indices.tolist()]


def _read(rows_MX: npt.NDArray[Any], released: Released) -> list[npt.NDArray[Any]]:
    """Of all rows that came back, those of each record, without its filler."""
    records = np.split(rows_MX, np.cumsum(released.lengths_B)[:-1])
    return records if released.own is None else [rows[own] for rows, own in zip(records, released.own, strict=True)]
