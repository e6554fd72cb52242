"""KV caches: run a slice a few positions at a time, keeping keys and values so that each position is computed once.

The slices' own code runs with the cache that transformers generates with, so tokens equal those of `model.generate`.
Decoders only.

Shapes: T new positions of one record after `past` earlier ones, or one new position of each of N records; D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from privtune.shared.errors import ModelUnsupported
from privtune.shared.modeling.partition import Bottom, Top


class _SliceCache:
    """The keys and values of one record in one slice. `past` counts its positions."""

    def __init__(self, base: Any, config: Any, kept: range) -> None:
        self.past, self._base, self._config = 0, base, config
        self._cache = DynamicCache(config=config)
        self._name = cache_argument(base)
        _alias_absent(self._cache, kept)
        self._kept = kept

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        held = [self._cache.layers[index] for index in self._kept]
        tensors = [t for layer in held for t in (layer.keys, layer.values) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    def run(self, h_TD: Tensor) -> Tensor:
        """(T, D) -> the base's final hidden states at the new positions, whose keys and values are kept."""
        positions = _positions(self.past, len(h_TD), h_TD.device)
        out_BTD = self.call(h_TD[None], self._cache, position_ids=positions)
        self.past += len(h_TD)
        return out_BTD[0]

    def call(self, h_BTD: Tensor, cache: DynamicCache, **about: Tensor) -> Tensor:
        """The base's final hidden states of positions that follow those in `cache`."""
        about_cache: dict[str, Any] = {self._name: cache}
        out_BTD: Tensor = self._base(inputs_embeds=h_BTD, use_cache=True, **about, **about_cache)[0]
        return out_BTD

    def take(self, joined: DynamicCache, row: int) -> None:
        """Keep the position that a pass over several records added to this one, its row `row`."""
        for index in self._kept:
            layer, newest = joined.layers[index], (slice(row, row + 1), slice(None), slice(-1, None))
            self._cache.layers[index].update(layer.keys[newest], layer.values[newest])
        self.past += 1

    def begin(self, joined: DynamicCache, row: int, length: int) -> None:
        """Keep the first `length` positions of this record from a pass over several, in which it is row `row`."""
        for index in self._kept:
            layer, mine = joined.layers[index], (slice(row, row + 1), slice(None), slice(length))
            self._cache.layers[index].update(layer.keys[mine], layer.values[mine])
        self.past = length

    def empty(self) -> DynamicCache:
        """An empty cache for this slice."""
        cache = DynamicCache(config=self._config)
        _alias_absent(cache, self._kept)
        return cache

    def holds(self, positions: int) -> bool:
        """Whether every block keeps that many positions; a sliding window keeps one fewer than its width."""
        layers = [self._cache.layers[index] for index in self._kept]
        return all(positions < layer.sliding_window for layer in layers if layer.is_sliding)

    def joined(self, others: Sequence[_SliceCache], longest: int) -> DynamicCache:
        """The keys and values of several records of this slice as one batch, padded on the left, as for `generate`."""
        cache = self.empty()
        for index in self._kept:
            layer, held = cache.layers[index], [other._cache.layers[index] for other in others]
            layer.update(_left_padded([one.keys for one in held]), _left_padded([one.values for one in held]))
            if layer.is_sliding:  # the window has seen more positions than it keeps
                layer.cumulative_length = longest
        return cache


def _run_together(records: Sequence[_SliceCache], h_ND: Tensor) -> Tensor:
    """`run` for one new position of each record, (N, D), in one pass over the weights.

    All records belong to one slice and have earlier positions. Equals separate passes up to rounding.
    """
    first, past_N = records[0], torch.tensor([record.past for record in records], device=h_ND.device)
    longest = int(past_N.max())
    cache = first.joined(records, longest)
    mask_NT = torch.arange(longest + 1, device=h_ND.device) >= (longest - past_N)[:, None]
    out_N1D = first.call(h_ND[:, None], cache, attention_mask=mask_NT.long(), position_ids=past_N[:, None])
    for row, record in enumerate(records):
        record.take(cache, row)
    return out_N1D[:, 0]


class TopCache(_SliceCache):
    """One record's KV cache in a top. Takes each position's vector once, in order."""

    def __init__(self, top: Top) -> None:
        super().__init__(top.task.base_model, top.config, range(top.cut, top.stop))

    @torch.no_grad()
    def extend(self, h_TD: Tensor) -> Tensor:
        """The top's output at the new positions, (T, D)."""
        return self.run(h_TD)

    @staticmethod
    @torch.no_grad()
    def extend_together(texts: Sequence[TopCache], h_ND: Tensor) -> Tensor:
        """The top's output at one new position of each text, (N, D), in one pass over the weights."""
        return _run_together(texts, h_ND)

    @staticmethod
    @torch.no_grad()
    def begin_together(texts: Sequence[TopCache], h_NTD: Tensor, lengths: Sequence[int]) -> Tensor:
        """The top's output at the first positions of new texts, (N, T, D), in one pass over the weights.

        Texts are padded on the right, which their own positions never attend to; the output there is undefined.
        """
        first, longest = texts[0], max(lengths)
        if not first.holds(longest):  # a sliding window would keep the padding of shorter texts
            out_NTD = torch.zeros_like(h_NTD)
            for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
                out_NTD[row, :length] = text.run(h_NTD[row, :length])
            return out_NTD
        cache = first.empty()
        out_NTD = first.call(h_NTD[:, :longest], cache, position_ids=_positions(0, longest, h_NTD.device))
        for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            text.begin(cache, row, length)
        return out_NTD


class BottomCache(_SliceCache):
    """One record's KV cache in a bottom. `embed` and `blocks` are `Bottom`'s, for the positions after `past`."""

    def __init__(self, bottom: Bottom) -> None:
        super().__init__(bottom._blocks, bottom.config, range(bottom.cut))
        self._bottom = bottom

    @torch.no_grad()
    def embed(self, ids_T: Tensor) -> Tensor:
        """h0_TD, the input of block 0 at the new positions. Does not change the cache."""
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

    @staticmethod
    @torch.no_grad()
    def embed_together(records: Sequence[BottomCache], ids_N: Tensor) -> Tensor:
        """h0_ND of one new position of each record."""
        past_N1 = torch.tensor([[record.past] for record in records], device=ids_N.device)
        h0_N1D: Tensor = records[0]._bottom._embed(input_ids=ids_N[:, None], position_ids=past_N1, use_cache=False)[0]
        return h0_N1D[:, 0]

    @staticmethod
    @torch.no_grad()
    def blocks_together(records: Sequence[BottomCache], h0_ND: Tensor) -> Tensor:
        """h_ND of one new position of each record."""
        if records[0]._bottom.cut > 0:
            return _run_together(records, h0_ND)
        for record in records:
            record.past += 1
        return h0_ND


def check_cache(config: Any) -> None:
    """Raises `ModelUnsupported` for a model that keeps something else of earlier tokens, like a state-space model."""
    for layer in DynamicCache(config=config).layers:
        if not hasattr(layer, "is_sliding"):
            raise ModelUnsupported(f"it keeps more than keys and values of earlier tokens ({type(layer).__name__}).")


def cache_argument(model: Any) -> str:
    """The name of `forward`'s cache argument: transformers 5 renames it model by model and warns of the old name."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _left_padded(parts: Sequence[Tensor]) -> Tensor:
    """(1, heads, T, D) each -> (N, heads, longest T, D)."""
    longest = max(part.shape[-2] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, 0, longest - part.shape[-2], 0)) for part in parts])


def _positions(past: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(past, past + count, device=device)[None]


def _alias_absent(cache: DynamicCache, kept: range) -> None:
    """Let the blocks that a slice lacks share the cache layer of one that it has, of the same kind.

    transformers sizes its masks by the first layer of a kind, which may belong to an absent block and never fill.
    """
    layers = cache.layers
    for index, layer in enumerate(layers):
        same = (i for i in kept if layers[i].is_sliding == layer.is_sliding)
        if index not in kept and (there := next(same, None)) is not None:
            layers[index] = layers[there]
