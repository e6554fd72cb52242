"""`custext`: each token replaced from its output set before the bottom reads it. U usable ids, G sets of K ids."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from privtune.device.noise.base import Mechanism, Release
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.params import CusTextParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.clustering import greedy_groups
from privtune.device.noise.tables.public_tables import PublicTables
from privtune.device.noise.tables.table_cache import cached, recipe
from privtune.device.privacy.statements import Statement
from privtune.device.privacy.statements.no_bound import no_bound_statement


class CusText(Mechanism):
    """CusText (Chen et al. 2022, arXiv 2207.09490): each token becomes a word drawn from its output set.

    The exponential mechanism with the similarity to the token (scaled to 0..1 within the set, so of sensitivity 1) as
    its score: probability ~ exp(epsilon * score / 2). The bottom then reads the sanitised text.
    Loss: at most epsilon per token WITHIN an output set; words of another set are impossible, so unbounded across.
    Departures: the model's tokens instead of words; similarity of the model's own embeddings; sets start from publicly
    frequent ids, not from those of the private corpus; unknown and special ids stay.
    """

    name: ClassVar[str] = "custext"
    reads_vectors = False

    def __init__(self, params: CusTextParams, context: NoiseContext) -> None:
        super().__init__(context)
        self.injection = params.injection
        self.reads_draws = params.injection == "cut" and context.cut > 0
        self.params = params
        self.tables = PublicTables(context, "embedding")

    def prepare(self) -> dict[str, float]:
        """Number of output sets, and how often a token is kept (mean over the vocabulary)."""
        own_U = (self.sets_GK[self._set_U] == torch.arange(len(self._set_U)).unsqueeze(1)).float()
        return {"sets": float(len(self.sets_GK)), "kept": float((self.chances_UK * own_U).sum(dim=1).mean())}

    def _settings(self) -> dict[str, Any]:
        return {"injection": "embedding", "set_size": self.params.set_size}

    @cached_property
    def sets_GK(self) -> Tensor:
        """Members of each output set, as places among the usable ids; padded with -1."""

        def make() -> dict[str, Tensor]:
            order_U = np.argsort(-self.tables.frequency_U, kind="stable")
            groups = greedy_groups(self.tables.unit_UD, self.params.set_size, order_U, self.context.progress)
            return {"sets": torch.from_numpy(groups).to(torch.int32)}

        return cached(self.context, "custext", self._settings(), make)["sets"].long()

    @cached_property
    def chances_UK(self) -> Tensor:
        """Probability of each member of an id's output set: exp(epsilon * score / 2) normalised; float32."""
        unit_UD, sets_GK = self.tables.unit_UD, self.sets_GK
        members_GKD = unit_UD[sets_GK.clamp(min=0)]
        similar_GKK = members_GKD @ members_GKD.transpose(1, 2)
        absent_GK = sets_GK < 0
        low_GK = similar_GKK.masked_fill(absent_GK.unsqueeze(1), torch.inf).amin(dim=2, keepdim=True)
        high_GK = similar_GKK.masked_fill(absent_GK.unsqueeze(1), -torch.inf).amax(dim=2, keepdim=True)
        score_GKK = ((similar_GKK - low_GK) / (high_GK - low_GK).clamp(min=1e-9)).clamp(0, 1)
        logits_GKK = (self.params.epsilon / 2 * score_GKK).masked_fill(absent_GK.unsqueeze(1), -torch.inf)
        chances_UK = torch.zeros(len(unit_UD), sets_GK.shape[1])
        chances_UK[sets_GK[~absent_GK]] = logits_GKK.softmax(dim=2)[~absent_GK]
        return chances_UK

    @cached_property
    def _set_U(self) -> Tensor:
        set_U = torch.empty(len(self.tables.unit_UD), dtype=torch.int64)
        present_GK = self.sets_GK >= 0
        set_U[self.sets_GK[present_GK]] = present_GK.nonzero()[:, 0]
        return set_U

    def sanitise(self, ids_BT: Tensor, mask_BT: Tensor, generator: NoiseSource) -> Tensor:
        """Replacement ids of a micro-batch; int64, shape (B, T)."""
        place_BT = self.tables.place_V[ids_BT]
        word_BT = (place_BT >= 0) & mask_BT
        place_N = place_BT[word_BT]
        drawn_N = generator.choice(self.chances_UK[place_N])
        out_BT = ids_BT.clone()
        out_BT[word_BT] = self.context.usable_ids[self.sets_GK[self._set_U[place_N], drawn_N]]
        return out_BT

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        drawn_BT = self.sanitise(ids_BT, mask_BT, generator)
        return Release(h_BTD=self.context.states(drawn_BT, self.injection, mask_BT), mask_BT=mask_BT)

    def _statement(self) -> Statement:
        return no_bound_statement(
            name=self.name,
            row="cluster",
            injection=self.injection,
            numbers={"epsilon_inside_a_set": self.params.epsilon, "set_size": float(self.params.set_size)},
            why=(
                f"two words of one output set shift the odds by at most {self.params.epsilon:.4g} nats, but which set "
                "it was is revealed."
            ),
        )

    def _facts(self) -> dict[str, Any]:
        return {"sets": recipe(self.context, "custext", self._settings()), "epsilon": self.params.epsilon}
