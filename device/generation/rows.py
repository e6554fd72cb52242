"""The released rows of texts that grow: each row is drawn once for the tokens up to it, and never again.

A row is kept on disk under a hash of all token ids so far, in the store of releases but in generation's own scope. So a
conversation that goes on, an answer that is asked for again and a connection that was lost send the rows that left
before; what is computed from kept rows (blocks after noise at the embedding, the codec) tells nothing new.
T rows so far, N new ones, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from device.noise.base import Mechanism
from device.noise.importance import TokenImportance
from device.noise.randomness import NoiseSource
from device.releases import EncodedRelease, RecordKey, ReleaseStore
from shared.codec import encode
from shared.errors import InvalidInput
from shared.modeling.incremental import BottomCache
from shared.modeling.partition import Bottom


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """What draws rows. store: in generation's own scope; it holds rows at the injection point, float32.

    keeps_clean: a tail asks for the clean vectors at the cut as well.
    Raises InvalidInput for a mechanism that can't release a record row by row.
    """

    bottom: Bottom
    mechanism: Mechanism
    source: NoiseSource
    importance: TokenImportance | None
    store: ReleaseStore
    codec: str
    keeps_clean: bool = False

    def __post_init__(self) -> None:
        name = self.mechanism.name
        if self.mechanism.shortens:
            raise InvalidInput(f"mechanism {name} shortens records, so it can't release a text that is being written")
        if self.mechanism.reads_draws:
            raise InvalidInput(
                f"mechanism {name} at the cut reads a whole record of drawn words, so each new word would show a "
                "second draw of the others. Train with injection=embedding to generate"
            )


class GrowingText:
    """One text and its released rows so far, encoded."""

    def __init__(self, source: RowSource) -> None:
        self._from = source
        self._cache = BottomCache(source.bottom)
        self._digest = hashlib.sha256()
        self._clean_TD: Tensor | None = None
        self._clean_cache = BottomCache(source.bottom)
        self._clean_at_cut: list[Tensor] = []
        self._encoded: list[bytes] = []
        self.ids: list[int] = []
        self.drawn = 0  # rows that nobody had drawn before

    def missing(self, ids: Sequence[int]) -> int:
        """How many of the rows that these further ids need are still to be drawn."""
        keys = self._keys(ids, self._digest.copy())
        return len(keys) - len(self._from.store.held(keys))

    @torch.no_grad()
    def extend(self, ids: Sequence[int]) -> None:
        """Draw the rows of further ids, or take those that were drawn; they are on disk when this returns."""
        source, past = self._from, len(self.ids)
        self.ids += ids
        new_N = torch.tensor(list(ids), dtype=torch.int64)
        at_embedding = source.mechanism.injection == "embedding"
        clean_ND = self._cache.embed(new_N)
        if not at_embedding:
            clean_ND = self._cache.blocks(clean_ND)
        self._clean_TD = clean_ND if self._clean_TD is None else torch.cat([self._clean_TD, clean_ND])
        if source.keeps_clean:
            self._clean_at_cut.append(self._clean_cache.blocks(clean_ND) if at_embedding else clean_ND)
        rows_ND = self._kept(self._keys(ids, self._digest), past)
        if at_embedding:
            rows_ND = self._cache.blocks(rows_ND)
        self._encoded += [encode(row_1D, source.codec) for row_1D in rows_ND.float().numpy()[:, None]]

    def clean(self, start: int) -> Tensor:
        """h_TD, the clean vectors at the cut from `start` on; never sent. Only where the source keeps them."""
        return torch.cat(self._clean_at_cut)[start:].float()

    def encoded(self, start: int) -> bytes:
        """The rows from `start` on, as they go on the wire."""
        return b"".join(self._encoded[start:])

    def _kept(self, keys: list[RecordKey], past: int) -> Tensor:
        """The rows of these keys, which follow `past` rows: from the store, after it was given what it lacked."""
        store = self._from.store
        known = store.get_many(keys)
        missing = [number for number, key in enumerate(keys) if key not in known]
        if missing:
            drawn_TD = self._draw()[past:].numpy()
            new = {keys[n]: EncodedRelease(1, drawn_TD[n].astype("<f4").tobytes()) for n in missing}
            known |= store.put_many(new)
            self.drawn += len(missing)
        raw = b"".join(known[key].data for key in keys)
        return torch.from_numpy(np.frombuffer(raw, dtype="<f4").reshape(len(keys), -1).copy())

    def _draw(self) -> Tensor:
        """A release of the whole text, of which only rows that were never drawn may be used."""
        source = self._from
        if self._clean_TD is None:
            raise InvalidInput("an empty text has no rows")
        ids_1T = torch.tensor([self.ids])
        mask_1T = torch.ones_like(ids_1T)
        importance_1T = None if source.importance is None else source.importance.of(ids_1T, mask_1T)
        out = source.mechanism.release(ids_1T, self._clean_TD[None], mask_1T, importance_1T, generator=source.source)
        return out.h_BTD[0].float()

    @staticmethod
    def _keys(ids: Sequence[int], digest: hashlib._Hash) -> list[RecordKey]:
        """A key for each new row: 16 bytes of a hash over all ids up to it. Advances the digest."""
        keys = []
        for token in ids:
            digest.update(int(token).to_bytes(8, "big", signed=True))
            keys.append(RecordKey(0, digest.digest()[:16]))
        return keys
