"""The public side of a mechanism: what the cloud sees of a record, and what an attacker can simulate on its own text.

B records, T tokens, R released rows of all records together, N secret tokens, D hidden width: see `observed`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from privtune.device.audit.observed import Observed, packed
from privtune.device.data.encode import IntArray
from privtune.device.noise.base import Mechanism
from privtune.device.noise.importance import TokenImportance
from privtune.device.noise.randomness import NoiseSource, OsNoise, noise_source
from privtune.device.release.perturber import pad
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.partition import Bottom
from privtune.shared.wording import counted

Knowledge = Literal["oblivious", "adaptive"]
Mode = Literal["noisy", "quiet", "clean"]

_PLACES = 2048  # positions in a batch, padding included: many short records or few long ones
_KEPT = 100_000_000  # most values of clean vectors: 400 MB


class QuietNoise(OsNoise):
    """Normal noise of zero: simulation then shows the mean of additive mechanisms. Never for releases."""

    unsafe = True

    def normal(self, *shape: int) -> Tensor:
        """Zeros."""
        return torch.zeros(shape, dtype=torch.float32)


class CleanStates:
    """A frozen bottom's output for records, computed once each: attacks use the same text over and over.

    The first records are kept, as many as there is room for.
    """

    def __init__(self, bottom: Bottom) -> None:
        self._bottom, self._room = bottom, _KEPT
        self._rows: dict[bytes, Tensor] = {}

    def __call__(self, records: Sequence[IntArray]) -> Tensor:
        """h_BTD at the cut, float32, zero at padding."""
        keys = [np.asarray(ids_T, dtype=np.int64).tobytes() for ids_T in records]
        found = {key: self._rows.get(key) for key in keys}
        missing = {key: ids_T for key, ids_T in zip(keys, records, strict=True) if found[key] is None}
        if missing:
            ids_BT, mask_BT = pad(list(missing.values()))
            h_BTD = self._bottom(ids_BT, mask_BT).float()
            for row, (key, ids_T) in enumerate(missing.items()):
                found[key] = h_BTD[row, : len(ids_T)]
                if self._room >= len(ids_T) * h_BTD.shape[2]:
                    self._rows[key] = h_BTD[row, : len(ids_T)].clone()
                    self._room -= self._rows[key].numel()
        return pad_sequence([found[key] for key in keys], batch_first=True)  # type: ignore[misc]


class Victim:
    """Bottom and mechanism as the cloud knows them: weights, code, settings and public tables, never the noise drawn.

    Args:
        bottom: the frozen bottom.
        mechanism: the mechanism under attack.
        special_ids: ids whose places are public and that count as no secret.
        importance: for mechanisms that use one. The attacker gets it too, to be on the safe side: a table fitted on
            private records can partly be inferred from the vectors (`channels`).
        states: this bottom's clean vectors, as far as they are known.

    Raises InvalidInput if the mechanism needs an importance and has none.
    """

    def __init__(
        self,
        bottom: Bottom,
        mechanism: Mechanism,
        special_ids: frozenset[int],
        importance: TokenImportance | None = None,
        states: CleanStates | None = None,
    ) -> None:
        if mechanism.uses_importance and importance is None:
            raise InvalidInput(f"mechanism {mechanism.name} needs the importance of each token for its audit")
        self.bottom, self.mechanism, self.special_ids = bottom, mechanism, special_ids
        self.importance = importance
        self.states = CleanStates(bottom) if states is None else states
        # A copy, so that a simulation can't change the mechanism's own state and statement.
        self._simulated = copy.copy(mechanism)
        self._sources: dict[Mode, NoiseSource] = {"noisy": noise_source(), "quiet": QuietNoise()}
        self._special = torch.tensor(sorted(special_ids), dtype=torch.int64)

    def observe(self, records: Sequence[IntArray]) -> Observed:
        """What the cloud would receive for these records: one fresh draw of the noise."""
        return self._run(records, "noisy")

    def clean(self, records: Sequence[IntArray]) -> Observed:
        """The bottom's output without the mechanism, on which an attacker builds who does not know the mechanism."""
        return self._run(records, "clean")

    @torch.no_grad()
    def embedded(self, records: Sequence[IntArray]) -> Tensor:
        """h0_RD, the embedding stage's output for these records in sequence, which a device itself may use."""
        rows: list[Tensor] = []
        for ids_T in records:
            ids_BT, mask_BT = pad([ids_T])
            rows.append(self.bottom.embed(ids_BT, mask_BT)[0].float())
        return torch.cat(rows)

    def quiet(self, records: Sequence[IntArray]) -> Observed:
        """The mechanism's output with its normal noise set to zero: shifts, clipping and random targets remain."""
        return self._run(records, "quiet")

    def simulate(self, records: Sequence[IntArray], knowledge: Knowledge) -> Observed:
        """The vectors on which an attacker of this knowledge builds."""
        return self._run(records, "noisy" if knowledge == "adaptive" else "clean")

    def received(self, records: Sequence[IntArray], rows: Sequence[Tensor]) -> Observed:
        """Releases that were really sent, one (rows, D) float32 tensor per record, with their truth.

        Raises InvalidInput if a record has a number of rows that this mechanism would not give it.
        """
        parts = []
        for ids_T, rows_RD in zip(records, rows, strict=True):
            if not len(rows_RD) or (not self.mechanism.shortens and len(rows_RD) != len(ids_T)):
                raise InvalidInput(
                    f"a record of {counted(len(ids_T), 'token')} was sent as {counted(len(rows_RD), 'row')}: "
                    "that was another mechanism"
                )
            ids_BT, mask_BT = pad([ids_T])
            group_T = self._groups(ids_BT, mask_BT, torch.ones(1, len(rows_RD), dtype=torch.bool))[0]
            secret_T = ~torch.isin(ids_BT[0], self._special)
            parts.append((rows_RD, group_T[secret_T], ids_BT[0][secret_T]))
        return packed(parts)

    def _run(self, records: Sequence[IntArray], mode: Mode) -> Observed:
        parts: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(records)
        for chosen in _batches([len(ids_T) for ids_T in records]):
            drawn = self._batch([records[index] for index in chosen], mode)
            for index, part in zip(chosen.tolist(), drawn, strict=True):
                parts[index] = part
        return packed([part for part in parts if part is not None])

    @torch.no_grad()
    def _batch(self, records: Sequence[IntArray], mode: Mode) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per record: released rows, row of each secret token, and the secret tokens."""
        ids_BT, mask_BT = pad(records)
        rows_BT = mask_BT.bool()
        if mode == "clean":
            h_BTD = self.states(records)
        else:
            at_embedding = self.mechanism.injection == "embedding"
            h_BTD = self.bottom.embed(ids_BT, mask_BT).float() if at_embedding else self.states(records)
            importance_BT = None if self.importance is None else self.importance.of(ids_BT, mask_BT)
            source = self._sources[mode]
            release = self._simulated.release(ids_BT, h_BTD, mask_BT, importance_BT, generator=source)
            h_BTD, rows_BT = release.h_BTD, release.mask_BT
            if at_embedding:
                h_BTD = self.bottom.blocks(h_BTD, rows_BT.long()).float()
        group_BT = self._groups(ids_BT, mask_BT, rows_BT)
        secret_BT = mask_BT.bool() & ~torch.isin(ids_BT, self._special)
        return [(h_BTD[b][rows_BT[b]], group_BT[b][secret_BT[b]], ids_BT[b][secret_BT[b]]) for b in range(len(records))]

    def _groups(self, ids_BT: Tensor, mask_BT: Tensor, rows_BT: Tensor) -> Tensor:
        """The released row (by its number in the record) that each token went into."""
        if rows_BT.shape == mask_BT.shape and torch.equal(rows_BT, mask_BT.bool()):
            return torch.arange(mask_BT.shape[1]).expand_as(mask_BT)
        groups = getattr(self.mechanism, "groups", None)
        if groups is not None:
            group_BT: Tensor = groups(ids_BT, mask_BT)
            return group_BT
        # A mechanism that shortens and does not say how: assume rows of equally many tokens, in order.
        lengths_B1, rows_B1 = mask_BT.sum(1, keepdim=True), rows_BT.sum(1, keepdim=True)
        return (torch.arange(mask_BT.shape[1]) * rows_B1 // lengths_B1).clamp(max=rows_B1 - 1)


def _batches(lengths: Sequence[int]) -> Iterator[IntArray]:
    """Record numbers, the shortest records first, in batches of up to `_PLACES` positions."""
    order = np.argsort(lengths, kind="stable").astype(np.int32)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * lengths[order[end]] <= _PLACES:
            end += 1
        yield order[start:end]
        start = end
