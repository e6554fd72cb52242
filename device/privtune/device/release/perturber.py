"""From token ids to the bytes that may leave, drawn once per record: bottom, noise, codec, store.

Clean vectors leave `Perturber` for one place only, the tail of a job that trains on this device; no frame carries them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from privtune.device.data.batches import IndexArray
from privtune.device.data.encode import EncodedDataset, IntArray
from privtune.device.noise.base import Mechanism
from privtune.device.noise.importance import TokenImportance
from privtune.device.noise.randomness import NoiseSource
from privtune.device.release.beginnings import Beginnings
from privtune.device.release.filler import Padding
from privtune.device.release.record_keys import RecordKey, record_keys
from privtune.device.release.release_store import EncodedRelease, ReleaseStore
from privtune.shared.codec import encode
from privtune.shared.modeling.partition import Bottom
from privtune.shared.tracing import span
from privtune.shared.wire import FORWARD, Message, pack_positions
from privtune.split.v1 import split_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Released:
    """The releases of one micro-batch.

    handles: the record handles that the cloud sees, one per record.
    releases: one per record, in the same order.
    own: of each record, the rows of its own tokens, where the device drops those of filler; None: it reads all rows.
    """

    handles: IndexArray
    releases: list[EncodedRelease]
    own: list[IndexArray] | None = None

    @property
    def lengths_B(self) -> IndexArray:
        """Number of released rows of each record."""
        return np.array([release.rows for release in self.releases], dtype=np.int64)

    @property
    def read_B(self) -> IndexArray:
        """Number of rows of each record that the device reads."""
        return self.lengths_B if self.own is None else np.array([len(rows) for rows in self.own], dtype=np.int64)

    def rows(self) -> int:
        """Number of released rows of the whole micro-batch."""
        return int(self.lengths_B.sum())


class Perturber:
    """Gives each record's one release, and draws it at the first request.

    Args:
        bottom: the model's part below the cut.
        mechanism: the noise.
        source: where its randomness comes from.
        store: where releases are kept.
        codec: encoding of vectors on the wire; a mechanism with a public table sends ids.
        importance: weights of tokens, for a mechanism that uses them.
        beginnings: of a language model's texts, where their rows can be drawn one by one.
        padding: filler that hides lengths; None: records keep theirs.
    """

    def __init__(
        self,
        bottom: Bottom,
        mechanism: Mechanism,
        source: NoiseSource,
        store: ReleaseStore,
        codec: str,
        importance: TokenImportance | None = None,
        beginnings: Beginnings | None = None,
        padding: Padding | None = None,
    ) -> None:
        self._bottom, self._mechanism, self._source = bottom, mechanism, source
        self._store, self._importance = store, importance
        _, self._codec = mechanism.sent_as(codec)
        self._beginnings, self._padding = beginnings, padding
        self._key_lists: list[tuple[EncodedDataset, list[RecordKey]]] = []

    def release(self, data: EncodedDataset, indices: IndexArray, first_handle: int = 0) -> Released:
        """Releases of the records at `indices`. New draws are on disk on return. Raises as `ReleaseStore`.

        first_handle: handle of the data set's record 0.
        """
        all_keys = self.keys(data)
        keys = [all_keys[index] for index in indices.tolist()]
        known = self._store.get_many(keys)
        missing = {key: data.ids[index] for key, index in zip(keys, indices.tolist(), strict=True) if key not in known}
        if missing:
            drawn = self._draw(missing)
            known |= self._store.put_many(dict(zip(missing, drawn, strict=True)))
        padding = self._padding
        own = [padding.own(data.ids[i]) for i in indices.tolist()] if padding is not None and padding.dropped else None
        return Released(handles=indices + first_handle, releases=[known[key] for key in keys], own=own)

    def lengths(self, data: EncodedDataset) -> IndexArray:
        """Tokens of each record as the bottom reads it, filler included: all that may order what is sent."""
        return data.lengths if self._padding is None else self._padding.rows(data.lengths)

    @property
    def source(self) -> NoiseSource:
        """Where the noise's randomness comes from."""
        return self._source

    @property
    def importance(self) -> TokenImportance | None:
        """The weights of tokens, if the mechanism uses them."""
        return self._importance

    def keys(self, data: EncodedDataset) -> list[RecordKey]:
        """The store key of each record; see `record_keys`."""
        for known, keys in self._key_lists:
            if known is data:
                return keys
        keys = record_keys(data.ids)
        # The data set itself is kept with its keys: a later data set could get the same id().
        self._key_lists = [*self._key_lists[-1:], (data, keys)]
        return keys

    @torch.no_grad()
    def clean(self, data: EncodedDataset, indices: IndexArray, at: Literal["embedding", "cut"]) -> Tensor:
        """clean_BTD, the bottom's vectors without noise: for the tail on this device, and for nothing else."""
        ids_BT, mask_BT = pad([data.ids[index] for index in indices.tolist()])
        stage = self._bottom if at == "cut" else self._bottom.embed
        clean_BTD: Tensor = stage(ids_BT, mask_BT)
        return clean_BTD.float()

    @torch.no_grad()
    def _draw(self, records: Mapping[RecordKey, IntArray]) -> list[EncodedRelease]:
        padding, source = self._padding, self._source
        filled = records if padding is None else {key: padding.fill(ids_T, source) for key, ids_T in records.items()}
        ids_BT, mask_BT = pad(list(filled.values()))
        importance_BT = None if self._importance is None else self._importance.of(ids_BT, mask_BT)
        with span("bottom", rows=int(mask_BT.sum())):
            clean_BTD = vectors_for(self._mechanism, self._bottom, ids_BT, mask_BT)
        with span("noise", rows=int(mask_BT.sum())):
            out = self._mechanism.release(ids_BT, clean_BTD, mask_BT, importance_BT, generator=source)
        sent_BTW = out.sent_BTW
        if self._beginnings is not None:  # what stands behind filler has it in its past, and begins no other text
            begun = {key: ids_T if padding is None else ids_T[: padding.place(ids_T)] for key, ids_T in records.items()}
            sent_BTW = self._beginnings.join(begun, sent_BTW)
        if self._mechanism.injection == "embedding":
            with span("bottom", rows=int(out.mask_BT.sum())):
                sent_BTW = self._bottom.blocks(sent_BTW, out.mask_BT.long())
        encoded = []
        beside = zip(self._mechanism.own_rows(out).tolist(), out.fisher_B().tolist(), strict=True)
        for sent_TW, mask_T, (own_rows, fisher) in zip(sent_BTW, out.mask_BT.bool(), beside, strict=True):
            rows_TW = sent_TW[mask_T].float().numpy()
            data = encode(rows_TW, self._codec)
            encoded.append(EncodedRelease(rows=len(rows_TW), data=data, own_rows=own_rows, fisher=fisher))
        return encoded


def vectors_for(mechanism: Mechanism, bottom: Bottom, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """vectors_BTD, clean, at the mechanism's injection point; zeros for a mechanism that reads only token ids."""
    if not mechanism.reads_vectors:
        return torch.zeros(*ids_BT.shape, mechanism.dim)
    vectors_BTD: Tensor = (bottom.embed if mechanism.injection == "embedding" else bottom)(ids_BT, mask_BT)
    return vectors_BTD


def pad(records: Sequence[IntArray]) -> tuple[Tensor, Tensor]:
    """Right-padded ids_BT (int64, 0 where padded) and mask_BT (int64, 1 where real)."""
    lengths_B = np.array([len(ids_T) for ids_T in records])
    mask_BT = np.arange(lengths_B.max())[None, :] < lengths_B[:, None]
    ids_BT = np.zeros(mask_BT.shape, dtype=np.int64)
    ids_BT[mask_BT] = np.concatenate(records)
    return torch.from_numpy(ids_BT), torch.from_numpy(mask_BT.astype(np.int64))


class Uploader:
    """Builds FORWARD messages and remembers which records the cloud already holds in this session.

    Args:
        width: elements of a released row: D of a vector, 1 of an id.
        codec: their encoding on the wire.
    """

    def __init__(self, width: int, codec: str) -> None:
        self._width, self._codec = width, codec
        self._uploaded: set[int] = set()

    def forward(
        self,
        released: Released,
        readout_N: IndexArray,
        *,
        step: int,
        micro_batch: int,
        last: bool = False,
        forward_only: bool = False,
        inline_all: bool = False,
        shared_labels: Sequence[int] = (),
        weight: float = 0.0,
    ) -> Message:
        """The message of a micro-batch: bytes of the records that the cloud does not hold, handles for the others.

        Args:
            released: the micro-batch's releases.
            readout_N: positions, in the padded micro-batch, of the rows that the cloud returns; none: every row.
            step, micro_batch: the message's place in the session.
            last: it ends the step.
            forward_only: the cloud computes no gradient for it.
            inline_all: send the bytes of every record.
            shared_labels: one class per record, where the cloud computes the loss.
            weight: with shared labels, the micro-batch's share of the step's mean loss.
        """
        handles = released.handles.tolist()
        inlined = [inline_all or handle not in self._uploaded for handle in handles]
        self._uploaded.update(handles)
        payload = b"".join(r.data for r, now in zip(released.releases, inlined, strict=True) if now)
        header = pb.ForwardHeader(
            record_ids=handles,
            lengths=released.lengths_B.tolist(),
            inlined=inlined,
            readout=pack_positions(readout_N),
            shared_labels=shared_labels,
            forward_only=forward_only,
            weight=weight,
        )
        return Message(
            kind=FORWARD,
            step=step,
            micro_batch=micro_batch,
            payload=payload,
            rows=sum(r.rows for r, now in zip(released.releases, inlined, strict=True) if now),
            width=self._width,
            codec=self._codec,
            forward=header,
            last_micro_batch=last,
        )
