"""Public tables of a model at one injection point: prototypes, graph, frequencies, vectors of special tokens.

Each is computed once; the costly ones are kept on disk (`table_cache`). V vocabulary, U usable ids, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from privtune.device.noise.context import Injection, NoiseContext
from privtune.device.noise.tables.graph import Graph, centred, nearest, recall
from privtune.device.noise.tables.table_cache import cached
from privtune.device.noise.tables.word_frequency import FloatArray, frequencies
from privtune.shared.public_table import PublicTable

_SEARCH = "lists"  # how neighbours are found: part of the recipe
_RARE = 3  # an id that occurs less often in the public text keeps its isolated state
_TEXTS, _LENGTH = 32, 16  # made-up rows over which the state of a special token is averaged


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """A table of targets and special ids. special_V: the row of each special id, 0 for other ids; int64."""

    table: PublicTable
    special_V: Tensor

    def vectors(self, row_BT: Tensor) -> Tensor:
        """h_BTD, float32; a row's position is its column."""
        place_BT = torch.arange(row_BT.shape[1]).expand_as(row_BT)
        h_ND = self.table.vectors(row_BT.flatten().numpy(), place_BT.flatten().numpy())
        return torch.from_numpy(h_ND).view(*row_BT.shape, -1)


class PublicTables:
    """Prototypes, graph and word frequencies at one injection point."""

    def __init__(self, context: NoiseContext, injection: Injection) -> None:
        self.context, self.injection = context, injection

    @cached_property
    def prototypes_UD(self) -> Tensor:
        """The vector of each usable id: its mean state over the public text, or its isolated state if too rare."""

        def make() -> dict[str, Tensor]:
            alone_UD = self.context.isolated_states(self.injection)
            if self.injection == "cut" and self.context.public_rows:
                alone_UD = self._mean_states(alone_UD)
            return {"prototypes": alone_UD.half()}

        return cached(self.context, "prototypes", {"injection": self.injection}, make)["prototypes"].float()

    def _mean_states(self, alone_UD: Tensor) -> Tensor:
        total_UD = torch.zeros_like(alone_UD)
        seen_U = torch.zeros(len(alone_UD))
        rows = [row for row in self.context.public_rows if len(row)]
        for number, row in enumerate(rows):
            ids_1T = torch.tensor([list(row)])
            place_T = self.place_V[ids_1T[0]]
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
        """Place of each id among the usable ones, -1 for the others; int64."""
        place_V = torch.full((len(self.context.tokens),), -1, dtype=torch.int64)
        place_V[self.context.usable_ids] = torch.arange(len(self.context.usable_ids))
        return place_V

    @cached_property
    def unit_UD(self) -> Tensor:
        """Centred, normalised prototypes."""
        return centred(self.prototypes_UD)

    def graph(self, k: int) -> Graph:
        """The symmetric graph of each usable id's k nearest ids, by centred cosine."""

        return Graph.from_nearest(self._nearest(k)["nearest"].long())

    def recall(self, k: int) -> float:
        """Share of the true k nearest ids that the graph has: 1 unless the vocabulary is large."""
        return float(self._nearest(k)["recall"])

    def _nearest(self, k: int) -> dict[str, Tensor]:
        def make() -> dict[str, Tensor]:
            found = nearest(self.unit_UD, k, self.context.progress)
            return {"nearest": found.to(torch.int32), "recall": torch.tensor(recall(self.unit_UD, found))}

        return cached(self.context, "nearest", {"injection": self.injection, "k": k, "search": _SEARCH}, make)

    @cached_property
    def frequency_U(self) -> FloatArray:
        """Public relative frequency of each usable id, positive, summing to one."""
        return frequencies(self.context, self.place_V.numpy())

    def with_special(self, centre_KD: Tensor, offsets_PD: Tensor | None = None) -> TableRows:
        """The table of K targets and then the special ids' vectors. offsets_PD: what a position adds to a target."""
        special = self._special_ids
        row_V = torch.zeros(len(self.context.tokens), dtype=torch.int64)
        row_V[special] = len(centre_KD) + torch.arange(len(special))
        rows = torch.cat([centre_KD, self._special_SD]).numpy()
        offsets = centre_KD[:0] if offsets_PD is None else offsets_PD
        table = PublicTable(rows_KD=rows, offsets_PD=offsets.numpy(), placed=len(centre_KD))
        return TableRows(table=table, special_V=row_V)

    @property
    def _special_ids(self) -> list[int]:
        return sorted(i for i in self.context.special_ids if i < len(self.context.tokens))

    @cached_property
    def _special_SD(self) -> Tensor:
        """Mean state of each special id at its usual place (before or after a text, else alone)."""
        # Kept on disk: the last bits of a state depend on the number of threads, and ids on the whole table.
        made = cached(self.context, "special", {"injection": self.injection}, lambda: {"special": self._special()})
        return made["special"]

    def _special(self) -> Tensor:
        context = self.context
        generator = torch.Generator().manual_seed(0)  # a public table, not noise
        picks = torch.randint(len(context.usable_ids), (_TEXTS, _LENGTH), generator=generator)
        before = torch.tensor([context.prefix], dtype=torch.int64).expand(_TEXTS, -1)
        after = torch.tensor([context.suffix], dtype=torch.int64).expand(_TEXTS, -1)
        rows_BT = torch.cat([before, context.usable_ids[picks], after], dim=1)
        mean_TD = context.states(rows_BT, self.injection).mean(dim=0)
        places = {token: len(context.prefix) + _LENGTH + t for t, token in reversed(list(enumerate(context.suffix)))}
        places |= {token: t for t, token in reversed(list(enumerate(context.prefix)))}
        table_SD = torch.zeros(len(self._special_ids), context.hidden_size)
        for place, token in enumerate(self._special_ids):
            if token in places:
                table_SD[place] = mean_TD[places[token]]
            else:
                alone = torch.tensor([[*context.prefix, token, *context.suffix]])
                table_SD[place] = context.states(alone, self.injection)[0, len(context.prefix)]
        return table_SD
