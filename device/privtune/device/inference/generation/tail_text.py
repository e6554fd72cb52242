"""One text in a tail: keys and values of its earlier positions are kept, as the cloud keeps those of its own blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from privtune.device.inference.generation.growing_rows import GrowingText
from privtune.device.model.tail import Tail
from privtune.shared.errors import FrameCorrupt
from privtune.shared.modeling.kv_cache import TopCache
from privtune.shared.wording import counted


class TailText:
    """Extends a text through the tail each time the cloud sends states of it. M states, T positions so far, D width."""

    def __init__(self, tail: Tail) -> None:
        tail.train(False)
        self._tail, self._cache = tail, TopCache(tail.blocks)
        self._below = None if tail.below is None else TopCache(tail.below)

    @torch.no_grad()
    def extend(self, rows_MD: Tensor, text: GrowingText) -> Tensor:
        """out_ND of the N positions that are new here. rows_MD: the text's last M states; some may be known already."""
        past = self._cache.past
        new = len(text.ids) - past
        if not 0 < new <= len(rows_MD):
            raise FrameCorrupt(f"the cloud sent {counted(len(rows_MD), 'state')} of a text that needs {new}")
        place = self._tail.begins_with
        h_ND = text.clean(past, place) if place is not None else None
        if self._below is not None and h_ND is not None:
            h_ND = self._below.extend(h_ND)
        return self._cache.extend(self._tail.fused(rows_MD[-new:], h_ND))
