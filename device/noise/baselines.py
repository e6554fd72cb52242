"""Other people's mechanisms, each sampled correctly, each with its departure from the paper named."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from device.noise.base import Mechanism, Release, clip_rows
from device.noise.clusters import greedy_groups
from device.noise.context import NoiseContext
from device.noise.dchi import DChi, clip_radius
from device.noise.params import (
    ClusterParams,
    CusTextParams,
    DChiParams,
    SapParams,
    SndParams,
    TextObfuscatorParams,
)
from device.noise.randomness import NoiseSource
from device.noise.tables import Tables, cached, recipe
from device.noise.targets import ClusterTargets
from shared.errors import InvalidInput
from shared.privacy import Statement
from shared.statements import laplace_statement, no_bound_statement


class SplitNDenoise(DChi):
    """`snd`: Split-N-Denoise (Mai et al. 2023, arXiv 2310.09130), its noise: d_chi on clipped token embeddings.

    Departure: the paper's pre-trained denoiser, which the device would run on the cloud's answer, is not built; here
    the head on the device learns on noised answers instead.
    """

    name: ClassVar[str] = "snd"

    def __init__(self, params: SndParams, context: NoiseContext) -> None:
        same = {"noise_ratio": params.noise_ratio, "clip_ratio": params.clip_ratio}
        super().__init__(DChiParams(injection="embedding", **same), context)


class SplitAndPrivatize(DChi):
    """`sap`: Split-and-Privatize (Shen et al. 2023, arXiv 2312.15603): less noise on the contributing tokens.

    Departure: contribution is our token importance, not the paper's gradient-based score. The scale depends on the
    secret token, so no bound is left.
    """

    name: ClassVar[str] = "sap"
    uses_importance = True

    def __init__(self, params: SapParams, context: NoiseContext) -> None:
        super().__init__(params, context)
        self.params = params

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        if importance_BT is None:
            raise InvalidInput("mechanism sap needs the importance of each token")
        contributes_BT = self._contributing(importance_BT, mask_BT)
        scale_BT = torch.where(contributes_BT, self.params.kept_noise, 1.0)
        noise_BTD = generator.dchi(self.eta, *h_BTD.shape) * scale_BT.unsqueeze(-1)
        return Release(h_BTD=noise_BTD + self._clipped(h_BTD), mask_BT=mask_BT)

    def _contributing(self, importance_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The record's most important tokens: the wanted share of its length, rounded up, never padding."""
        ranked_BT = importance_BT.masked_fill(~mask_BT, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank_BT = torch.empty_like(ranked_BT).scatter_(
            1, ranked_BT, torch.arange(ranked_BT.shape[1]).expand_as(ranked_BT)
        )
        wanted_B1 = (mask_BT.sum(dim=1, keepdim=True) * self.params.contributing).ceil()
        return (rank_BT < wanted_B1) & mask_BT

    def _statement(self) -> Statement:
        return no_bound_statement(
            name=self.name,
            row="scale",
            injection=self.injection,
            numbers={"eta": self.eta, "expected_noise_norm": self.dim / self.eta},
            why="the noise's scale depends on the secret token, so the ratio of probabilities is unbounded.",
        )

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "contributing": self.params.contributing, "kept": self.params.kept_noise}


class TextObfuscator(Mechanism):
    """`textobfuscator`: TextObfuscator (Zhou et al. 2023, Findings of ACL), its release: prototype pull + Laplace.

    Departure: the paper trains the encoder so that words gather round their prototype; our bottom is frozen, so the
    vector is moved towards the prototype by hand, and clipped (the paper does not), which gives a bound.
    """

    name: ClassVar[str] = "textobfuscator"

    def __init__(self, params: TextObfuscatorParams, context: NoiseContext) -> None:
        super().__init__(context)
        self.injection = params.injection
        self.params = params
        self.clip = clip_radius(params, context)
        norm = context.typical_norm(params.injection)
        self.scale = params.noise_ratio * norm / math.sqrt(2 * self.dim)
        clusters = ClusterParams(cluster_size=params.cluster_size, max_share=1.0, frequency_weight=0.0)
        self.targets = ClusterTargets(clusters, context, params.injection)

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        label_BT = self.targets.label_V[ids_BT]
        prototype_BTD = self.targets.centre_CD[label_BT.clamp(min=0)]
        pull_BT1 = self.params.pull * (label_BT >= 0).unsqueeze(-1)
        signal_BTD = h_BTD + pull_BT1 * (prototype_BTD - h_BTD)
        if self.clip is not None:
            signal_BTD = clip_rows(signal_BTD, self.clip)
        # A difference of two exponentials is Laplace.
        uniform = generator.uniform(2, *h_BTD.shape).clamp_(min=2.0**-54).log_().neg_()
        noise_BTD = (self.scale * (uniform[0] - uniform[1])).to(torch.float32)
        return Release(h_BTD=signal_BTD + noise_BTD, mask_BT=mask_BT)

    def _statement(self) -> Statement:
        if self.clip is None:
            return no_bound_statement(
                name=self.name,
                row="unclipped",
                injection=self.injection,
                numbers={"scale": self.scale},
                why="the vectors are not clipped.",
            )
        return laplace_statement(
            name=self.name, injection=self.injection, scale=self.scale, dim=self.dim, clip=self.clip
        )

    def _facts(self) -> dict[str, Any]:
        facts = {"scale": self.scale, "clip": self.clip, "pull": self.params.pull}
        return {**facts, "clusters": self.targets.recipe()}


class CusText(Mechanism):
    """`custext`: CusText (Chen et al. 2022, arXiv 2207.09490): another word from the token's own output set.

    Exponential mechanism with the similarity (scaled to 0..1 in the set) as its score; the bottom then reads the
    sanitised text. Departure: tokens of the model instead of words; unknown and special ids stay.
    Loss: at most epsilon a token INSIDE an output set; another set's words are impossible, so unbounded across.
    """

    name: ClassVar[str] = "custext"

    def __init__(self, params: CusTextParams, context: NoiseContext) -> None:
        super().__init__(context)
        self.injection = params.injection
        self.params = params
        self.tables = Tables(context, "embedding")

    def _settings(self) -> dict[str, Any]:
        return {"set_size": self.params.set_size}

    @cached_property
    def sets_GK(self) -> Tensor:
        """Members (places among usable ids) of each output set, -1 padded."""

        def make() -> dict[str, Tensor]:
            order_U = np.argsort(-self.tables.frequency_U, kind="stable")
            groups = greedy_groups(self.tables.unit_UD, self.params.set_size, order_U, self.context.progress)
            return {"sets": torch.from_numpy(groups).to(torch.int32)}

        return cached(self.context, "custext", self._settings(), make)["sets"].long()

    @cached_property
    def chances_UK(self) -> Tensor:
        """Probability of each member of the own set: exp(epsilon * score / 2) normalised; float32."""
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
        """Replacement ids of a micro-batch."""
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
        run = self.context.bottom.embed if self.injection == "embedding" else self.context.bottom
        return Release(h_BTD=run(drawn_BT, mask_BT.long()).to(torch.float32), mask_BT=mask_BT)

    def _statement(self) -> Statement:
        return no_bound_statement(
            name=self.name,
            row="cluster",
            injection=self.injection,
            numbers={"epsilon_inside_a_set": self.params.epsilon, "set_size": float(self.params.set_size)},
            why=(
                f"two words of one output set shift the odds by at most {self.params.epsilon:.4g} nats, but which set "
                "it was is shown."
            ),
        )

    def _facts(self) -> dict[str, Any]:
        return {"sets": recipe(self.context, "custext", self._settings()), "epsilon": self.params.epsilon}
