"""Run a slice a few positions at a time: keys and values of earlier positions are kept, so each is computed once.

The slices' own code runs, with the cache that transformers itself generates with; so tokens equal `model.generate`.
Decoders only. One record at a time: T new tokens after `past` earlier ones, width D.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from shared.modeling.partition import Bottom, Top


class _SliceCache:
    """The keys and values of one record in one slice."""

    def __init__(self, base: Any, config: Any, kept: range) -> None:
        self.past, self._base = 0, base
        self._cache = DynamicCache(config=config)
        # transformers 5 renames the argument on its way and warns of the old name.
        self._name = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
        _alias_absent(self._cache, kept)
        self._kept = kept

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        held = [self._cache.layers[index] for index in self._kept]
        tensors = [t for layer in held for t in (layer.keys, layer.values) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    def run(self, h_TD: Tensor) -> Tensor:
        """The base's final hidden states of the new positions; their keys and values are kept."""
        positions = _positions(self.past, len(h_TD), h_TD.device)
        known = {self._name: self._cache}
        out_BTD: Tensor = self._base(inputs_embeds=h_TD[None], position_ids=positions, use_cache=True, **known)[0]
        self.past += len(h_TD)
        return out_BTD[0]


class TopCache(_SliceCache):
    """One record's state in a top: give it each position's vector once, in order."""

    def __init__(self, top: Top) -> None:
        super().__init__(top.task.base_model, top.config, range(top.cut, top.config.num_hidden_layers))

    @torch.no_grad()
    def extend(self, h_TD: Tensor) -> Tensor:
        """The top's output at the new positions, (T, D)."""
        return self.run(h_TD)


class BottomCache(_SliceCache):
    """One record's state in a bottom. `embed` and `blocks` are `Bottom`'s, for the positions after `past`."""

    def __init__(self, bottom: Bottom) -> None:
        super().__init__(bottom._blocks, bottom.config, range(bottom.cut))
        self._bottom = bottom

    @torch.no_grad()
    def embed(self, ids_T: Tensor) -> Tensor:
        """h0_TD, the input of block 0 at the new positions. Keeps nothing."""
        positions = _positions(self.past, len(ids_T), ids_T.device)
        h0_BTD: Tensor = self._bottom._embed(input_ids=ids_T[None], position_ids=positions, use_cache=False)[0]
        return h0_BTD[0]

    @torch.no_grad()
    def blocks(self, h0_TD: Tensor) -> Tensor:
        """h_TD at the cut. Call it once for each position, in order."""
        if self._bottom.cut == 0:
            self.past += len(h0_TD)
            return h0_TD
        return self.run(h0_TD)


def _positions(past: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(past, past + count, device=device)[None]


def _alias_absent(cache: DynamicCache, kept: range) -> None:
    """Let the blocks that a slice lacks share the cache of one that it has, of the same kind.

    transformers sizes its masks by the first layer of a kind, which may be one that is not here and never fills.
    """
    layers = cache.layers
    for index, layer in enumerate(layers):
        same = (i for i in kept if layers[i].is_sliding == layer.is_sliding)
        if index not in kept and (there := next(same, None)) is not None:
            layers[index] = layers[there]
