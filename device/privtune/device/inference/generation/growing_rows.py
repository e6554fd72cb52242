"""The released rows of texts that grow: each row is drawn once for the tokens up to it, and never again.

Rows are kept on disk (`release.beginnings`). A longer conversation, an answer that is requested again, a text that was
trained on and a lost connection therefore send the rows that left before; what is computed from kept rows (blocks after
noise at the embedding, the codec) reveals nothing new.
T rows so far, N new ones, D width; W: D of a vector, 1 of an id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from privtune.device.release.beginnings import Beginnings, row_keys
from privtune.device.release.noising import Noise
from privtune.device.release.record_keys import RecordKey
from privtune.shared.codec import encode
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.kv_cache import BottomCache
from privtune.shared.modeling.partition import Bottom


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """What draws rows.

    bottom: the model's, which the noise goes into.
    noise: what is drawn.
    beginnings: the rows that are known.
    codec: of vectors on the wire.

    Raises InvalidInput for a mechanism that can't release a record row by row.
    """

    bottom: Bottom
    noise: Noise
    beginnings: Beginnings
    codec: str

    def __post_init__(self) -> None:
        mechanism = self.noise.mechanism
        name = mechanism.name
        if mechanism.shortens:
            raise InvalidInput(f"mechanism {name} shortens records, so it can't release a text that is being written")
        if mechanism.reads_draws:
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
        self._embedded: list[Tensor] = []
        self._clean: list[Tensor] = []
        self._clean_cache = BottomCache(source.bottom)
        self._clean_at_cut: list[Tensor] = []
        self._encoded: list[bytes] = []
        self.ids: list[int] = []
        self.drawn = 0  # rows that no text had drawn before

    def missing(self, ids: Sequence[int]) -> int:
        """How many of the rows that these further ids need are still to be drawn."""
        return len(ids) - len(self._from.beginnings.known(row_keys(self._digest.copy(), ids)))

    def extend(self, ids: Sequence[int]) -> None:
        """Draw the rows of further ids, or take those that were drawn; they are on disk when this returns."""
        _extend([self] * len(ids), ids, self._cache.embed, self._cache.blocks)

    @staticmethod
    def extend_together(texts: Sequence[GrowingText], ids: Sequence[int]) -> None:
        """Extend each of these texts, which have rows already, by one id: one pass and one write to the disk."""
        caches = [text._cache for text in texts]
        embed, blocks = partial(BottomCache.embed_together, caches), partial(BottomCache.blocks_together, caches)
        _extend(texts, ids, embed, blocks)

    def clean(self, start: int, at: Literal["embedding", "cut"]) -> Tensor:
        """clean_TD, the clean vectors from `start` on, for a tail of this device; never sent."""
        if at == "embedding":
            return torch.stack(self._embedded[start:]).float()
        if self._from.noise.mechanism.injection == "cut":
            return torch.stack(self._clean[start:]).float()
        if new := self._clean[self._clean_cache.past :]:
            self._clean_at_cut += self._clean_cache.blocks(torch.stack(new))
        return torch.stack(self._clean_at_cut[start:]).float()

    def encoded(self, start: int) -> bytes:
        """The rows from `start` on, as they go on the wire."""
        return b"".join(self._encoded[start:])

    def note(self, token: int, embedded_D: Tensor, clean_D: Tensor) -> _NewRow:
        """Append an id, its vector at the embedding stage and the one at the injection point."""
        self.ids.append(token)
        self._embedded.append(embedded_D)
        self._clean.append(clean_D)
        return _NewRow(self, len(self.ids) - 1, row_keys(self._digest, [token])[0])

    def keep(self, row_1D: Tensor) -> None:
        """The next row as it is to be sent."""
        _, codec = self._from.noise.mechanism.sent_as(self._from.codec)
        self._encoded.append(encode(row_1D.float().numpy(), codec))

    def draw(self, first: int) -> Tensor:
        """A release of the rows from `first` on, (N, W); only those that were never drawn before may be used."""
        noise = self._from.noise
        begin = first if noise.mechanism.by_position else 0
        ids_1T = torch.tensor([self.ids[begin:]])
        mask_1T = torch.ones_like(ids_1T)
        importance_1T = None if noise.importance is None else noise.importance.of(ids_1T, mask_1T)
        clean_1TD = torch.stack(self._clean[begin:])[None]
        out = noise.mechanism.release(ids_1T, clean_1TD, mask_1T, importance_1T, generator=noise.source)
        return out.sent_BTW[0, first - begin :].float()


class _NewRow(NamedTuple):
    """The row at `place` of a text, not sent yet."""

    text: GrowingText
    place: int
    key: RecordKey


@torch.no_grad()
def _extend(
    owners: Sequence[GrowingText],
    ids: Sequence[int],
    embed: Callable[[Tensor], Tensor],
    blocks: Callable[[Tensor], Tensor],
) -> None:
    """Rows of new ids; owners: the text of each id, one text throughout or several different ones."""
    source = owners[0]._from
    at_embedding = source.noise.mechanism.injection == "embedding"
    embedded_ND = embed(torch.tensor(list(ids), dtype=torch.int64))
    clean_ND = embedded_ND if at_embedding else blocks(embedded_ND)
    rows = zip(owners, ids, embedded_ND, clean_ND, strict=True)
    new = [text.note(int(token), embedded_D, clean_D) for text, token, embedded_D, clean_D in rows]
    rows_ND = _kept(source.beginnings, new)
    if at_embedding:
        rows_ND = blocks(rows_ND)
    for text, row_1D in zip(owners, rows_ND[:, None], strict=True):
        text.keep(row_1D)


def _kept(beginnings: Beginnings, rows: Sequence[_NewRow]) -> Tensor:
    """What is to be sent of these rows, (N, D): from the store, in which missing ones are drawn first."""
    keys = [row.key for row in rows]
    known, new = beginnings.known(keys), {}
    drawn: dict[int, tuple[int, Tensor]] = {}  # by text: the first place, and the rows from there
    for row in rows:
        if row.key not in known and row.key not in new:
            if id(row.text) not in drawn:
                drawn[id(row.text)] = row.place, row.text.draw(row.place)
            first, drawn_ND = drawn[id(row.text)]
            new[row.key] = drawn_ND[row.place - first]
            row.text.drawn += 1
    if new:
        known |= beginnings.keep(new)
    return torch.stack([known[key] for key in keys])
