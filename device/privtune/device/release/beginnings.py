"""Rows of a language model's texts by the tokens up to them: a row is drawn once, whatever its text is used for.

The rows of a text that grows (a prompt and its answer) are stored one by one, under a hash of all ids so far. A record
is released as a whole; for each of its rows an entry says where it is. So a prompt that begins like a released record
sends that record's rows, and a record that begins like an earlier prompt or answer sends the rows of that.

Not joined: records that begin alike, which stay independent draws; a prompt and a record that two processes draw at the
same moment. The cloud sees which texts begin alike where rows are used again. T rows of a text, D width.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privtune.device.release.record_keys import RecordKey
from privtune.device.release.release_store import EncodedRelease, ReleaseStore
from privtune.shared.codec import decode, encode, row_bytes

_EXACT = "fp32"


class Beginnings:
    """The known rows of one noise distribution, at the injection point.

    rows: the store of single rows.

    Args:
        store: of the releases of whole records; the caller closes it.
        codec: of those releases.
        at_embedding: the noise is at the embedding, so that a release does not hold the rows themselves.
    """

    def __init__(self, store: ReleaseStore, codec: str, *, at_embedding: bool) -> None:
        with ExitStack() as opened:
            self.rows = opened.enter_context(closing(store.in_scope("rows")))
            self._places = opened.enter_context(closing(store.in_scope("places")))
            self._noised = opened.enter_context(closing(store.in_scope("noised"))) if at_embedding else None
            self._ending = opened.pop_all()
        self._whole, self._codec = (self._noised, _EXACT) if self._noised else (store, codec)

    def close(self) -> None:
        """Close the scopes that are its own."""
        self._ending.close()

    def known(self, keys: Sequence[RecordKey]) -> dict[RecordKey, Tensor]:
        """row_D of those rows that were drawn. keys: from `row_keys`."""
        found = {key: _vectors(item, _EXACT)[0] for key, item in self.rows.get_many(keys).items()}
        in_record: defaultdict[RecordKey, list[tuple[RecordKey, int]]] = defaultdict(list)
        for key, item in self._places.get_many([key for key in keys if key not in found]).items():
            record, place = RecordKey.unpacked(item.data[:-4]), int.from_bytes(item.data[-4:], "big")
            in_record[record].append((key, place))
        for record, item in self._whole.get_many(list(in_record)).items():
            rows_TD = _vectors(item, self._codec)
            found |= {key: rows_TD[place] for key, place in in_record[record]}
        return found

    def keep(self, rows: Mapping[RecordKey, Tensor]) -> dict[RecordKey, Tensor]:
        """Store new rows, each row_D; returns what MUST be sent for each, as `ReleaseStore.put_many`."""
        kept = self.rows.put_many({key: _stored(row_D[None]) for key, row_D in rows.items()})
        return {key: _vectors(item, _EXACT)[0] for key, item in kept.items()}

    def join(self, records: Mapping[RecordKey, npt.NDArray[np.int32]], h_BTD: Tensor) -> Tensor:
        """What MUST be released of new records that were drawn as h_BTD; notes where each of their rows will be.

        records: key and ids of each, in the order of h_BTD.
        """
        h_BTD, places = h_BTD.clone(), dict[RecordKey, EncodedRelease]()
        for h_TD, (record, ids_T) in zip(h_BTD, records.items(), strict=True):
            keys = row_keys(hashlib.sha256(), ids_T.tolist())
            grown = self.rows.get_many(keys)
            for place, key in enumerate(keys):
                if key in grown:
                    h_TD[place] = _vectors(grown[key], _EXACT)[0]
                places.setdefault(key, EncodedRelease(1, record.packed() + place.to_bytes(4, "big")))
        self._places.put_many(places)
        if self._noised is not None:
            rows = zip(h_BTD, records.items(), strict=True)
            kept = self._noised.put_many({key: _stored(h_TD[: len(ids_T)]) for h_TD, (key, ids_T) in rows})
            for h_TD, key in zip(h_BTD, records, strict=True):
                h_TD[: kept[key].rows] = _vectors(kept[key], _EXACT)
        return h_BTD


def row_keys(digest: hashlib._Hash, ids: Sequence[int]) -> list[RecordKey]:
    """The key of each further row: a record's `content_fingerprint`, if it ended there. Advances the digest."""
    keys = []
    for token in ids:
        digest.update(int(token).to_bytes(8, "big", signed=True))
        keys.append(RecordKey(0, digest.digest()[:16]))
    return keys


def _stored(rows_TD: Tensor) -> EncodedRelease:
    return EncodedRelease(len(rows_TD), encode(rows_TD.float().numpy(), _EXACT))


def _vectors(item: EncodedRelease, codec: str) -> Tensor:
    width = len(item.data) // item.rows // row_bytes(1, codec)
    return torch.from_numpy(decode(item.data, item.rows, width, codec))
