"""Public tables of a model at an injection point, worked out once and kept on disk by fingerprint.

A table belongs to (weights, cut, vocabulary, public texts, settings); nothing private goes in. V vocabulary, U usable
ids, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from device.noise.context import Injection, NoiseContext
from device.noise.graph import Graph, centred, nearest
from shared.errors import ArtifactCorrupt, InvalidInput, StorageFull

_VERSION = 1
_RARE = 3  # fewer sightings in the public text than this: the isolated state serves
_FLOOR = 1e-8  # frequency of a word that no source knows


def recipe(context: NoiseContext, name: str, settings: dict[str, Any]) -> str:
    """Fingerprint of how a table is made. Equal recipes give equal tables."""
    facts = {"name": name, "version": _VERSION, "identity": context.identity, **settings}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def cached(
    context: NoiseContext, name: str, settings: dict[str, Any], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The table from the cache folder, or made and kept there. Raises ArtifactCorrupt, StorageFull."""
    if context.cache is None:
        return make()
    path = context.cache / f"{name}-{recipe(context, name, settings)[:24]}.safetensors"
    if path.exists():
        try:
            tables: dict[str, Tensor] = load_file(path)
            return tables
        except (SafetensorError, OSError) as error:
            raise ArtifactCorrupt(f"the table {path.name} is damaged; delete it and it is made again") from error
    made = make()
    _write(path, made)
    return made


def _write(path: Path, tables: dict[str, Tensor]) -> None:
    half_way = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in tables.items()}, half_way)
        os.replace(half_way, path)
    except (OSError, SafetensorError) as error:
        half_way.unlink(missing_ok=True)
        raise StorageFull(f"the table {path.name} can't be written; free room or choose another folder") from error


class Tables:
    """Prototypes, graph and word statistics at one injection point."""

    def __init__(self, context: NoiseContext, injection: Injection) -> None:
        self.context, self.injection = context, injection

    @cached_property
    def prototypes_UD(self) -> Tensor:
        """One vector a usable id: its mean state over the public text, its isolated state where it is too rare."""

        def make() -> dict[str, Tensor]:
            alone_UD = self.context.isolated_states(self.injection)
            if self.injection == "cut" and self.context.public_rows:
                alone_UD = self._mean_states(alone_UD)
            return {"prototypes": alone_UD.half()}

        return cached(self.context, "prototypes", {"injection": self.injection}, make)["prototypes"].float()

    def _mean_states(self, alone_UD: Tensor) -> Tensor:
        place_V = self.place_V
        total_UD = torch.zeros_like(alone_UD)
        seen_U = torch.zeros(len(alone_UD))
        rows = [row for row in self.context.public_rows if len(row)]
        for number, row in enumerate(rows):
            ids_1T = torch.tensor([list(row)])
            place_T = place_V[ids_1T[0]]
            real = place_T >= 0
            states_TD = self.context.states(ids_1T, self.injection)[0]
            total_UD.index_add_(0, place_T[real], states_TD[real])
            seen_U.index_add_(0, place_T[real], torch.ones(int(real.sum())))
            self.context.progress("prototypes from public text", (number + 1) / len(rows))
        often = seen_U >= _RARE
        alone_UD[often] = total_UD[often] / seen_U[often, None]
        return alone_UD

    @cached_property
    def place_V(self) -> Tensor:
        """Place of each id among the usable ones, -1 for the others."""
        place_V = torch.full((len(self.context.tokens),), -1, dtype=torch.int64)
        place_V[self.context.usable_ids] = torch.arange(len(self.context.usable_ids))
        return place_V

    @cached_property
    def unit_UD(self) -> Tensor:
        """Centred, normalised prototypes."""
        return centred(self.prototypes_UD)

    def nearest_UK(self, k: int) -> Tensor:
        """The k nearest usable ids of each, by centred cosine."""
        settings = {"injection": self.injection, "k": k}
        make = lambda: {"nearest": nearest(self.unit_UD, k, self.context.progress).to(torch.int32)}  # noqa: E731
        return cached(self.context, "nearest", settings, make)["nearest"].long()

    def graph(self, k: int) -> Graph:
        """The symmetric k-nearest-neighbour graph."""
        return Graph.from_nearest(self.nearest_UK(k))

    @cached_property
    def frequency_U(self) -> NDArray[np.float64]:
        """Public relative frequency of each usable id, positive: `wordfreq` if installed, and the public text."""
        tokens = [self.context.tokens[i] for i in self.context.usable_ids.tolist()]
        known = _word_frequencies(tokens)
        counts = np.zeros(len(tokens))
        for row in self.context.public_rows:
            place = self.place_V[torch.tensor(list(row), dtype=torch.int64)].numpy()
            np.add.at(counts, place[place >= 0], 1.0)
        if counts.sum() > 0:
            counts = counts / counts.sum()
            # Five parts of the text at hand, one of the language: it is small, but it is the domain.
            known = counts if known is None else (5 * counts + known / known.sum()) / 6
        if known is None:
            return np.full(len(tokens), 1.0 / len(tokens))
        positive: NDArray[np.float64] = np.maximum(known / known.sum(), _FLOOR)
        positive /= positive.sum()
        return positive

    @cached_property
    def special_states(self) -> dict[int, Tensor]:
        """Mean state of each special id where it stands: before or after a text, else alone inside one."""
        context = self.context
        generator = torch.Generator().manual_seed(0)  # a public table, not noise
        picks = torch.randint(len(context.usable_ids), (32, 16), generator=generator)
        before = torch.tensor([context.prefix], dtype=torch.int64).expand(32, -1)
        after = torch.tensor([context.suffix], dtype=torch.int64).expand(32, -1)
        rows_BT = torch.cat([before, context.usable_ids[picks], after], dim=1)
        mean_TD = context.states(rows_BT, self.injection).mean(dim=0)
        out = {}
        for token in sorted(context.special_ids):
            where = [t for t in range(rows_BT.shape[1]) if int(rows_BT[0, t]) == token]
            if where and (where[0] < len(context.prefix) or where[0] >= 16 + len(context.prefix)):
                out[token] = mean_TD[where[0]]
            elif token < len(context.tokens):
                alone = torch.tensor([[*context.prefix, token, *context.suffix]])
                out[token] = context.states(alone, self.injection)[0, len(context.prefix)]
        return out


def surface(token: str) -> str:
    """The text of a token without its tokenizer's marks."""
    return token.removeprefix("##").lstrip("Ġ▁ ").removesuffix("</w>")


def _word_frequencies(tokens: Sequence[str]) -> NDArray[np.float64] | None:
    """English frequency of each token's text; None where `wordfreq` is not installed. Pieces of words count a tenth."""
    try:
        word_frequency: Any = import_module("wordfreq").word_frequency
    except ImportError:
        return None
    starts_marked = any(token.startswith(("Ġ", "▁")) for token in tokens)
    out = np.empty(len(tokens))
    for i, token in enumerate(tokens):
        piece = token.startswith("##") or (starts_marked and not token.startswith(("Ġ", "▁")))
        text = surface(token)
        out[i] = max(_FLOOR, word_frequency(text, "en") if text else 0.0) * (0.1 if piece else 1.0)
        # Punctuation is as frequent as the commonest words, and no word list has it.
        if text and not any(ch.isalnum() for ch in text):
            out[i] = 1e-2 if text in ".,'" else 1e-4
    return out


def lexicon_groups(tokens: Sequence[str], lexicon: str) -> NDArray[np.int64]:
    """Group of each token by a public lexicon: 0 neutral or unknown, 1 negative, 2 positive.

    lexicon: "none" or "sentiment" (the `vaderSentiment` package). Raises InvalidInput when it is not installed.
    """
    if lexicon == "none":
        return np.zeros(len(tokens), dtype=np.int64)
    try:
        package: Any = import_module("vaderSentiment.vaderSentiment")
    except ImportError as error:
        raise InvalidInput(
            "lexicon=sentiment needs the package vaderSentiment: pip install vaderSentiment", param="lexicon"
        ) from error
    scores: dict[str, float] = package.SentimentIntensityAnalyzer().lexicon
    values = np.array([scores.get(surface(token).lower(), 0.0) for token in tokens])
    return np.where(values < -0.3, 1, np.where(values > 0.3, 2, 0)).astype(np.int64)
