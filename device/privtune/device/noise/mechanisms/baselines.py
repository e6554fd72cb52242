"""Other people's mechanisms, each sampled correctly, each with its departure from the paper named."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from privtune.device.noise.base import Mechanism, Release, clip_rows
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.dchi import DChi, clip_radius
from privtune.device.noise.params import ClusterParams, DChiParams, SapParams, SndParams, TextObfuscatorParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.cluster_targets import ClusterTargets
from privtune.device.privacy.bounds import Statement
from privtune.device.privacy.statements import laplace_statement, no_bound_statement
from privtune.shared.errors import InvalidInput


class SplitNDenoise(DChi):
    """`snd`: Split-N-Denoise (Mai et al. 2023, arXiv 2310.09130), its noise: d_chi on clipped token embeddings.

    Loss: eta * distance, at most 2 * eta * R. Public code of the paper multiplies a Gamma draw a coordinate with a
    uniform one (neither the law nor the length that the bound needs) and shortens vectors after the noise only;
    ours draws one radius and one direction a token, after clipping. Departure: the paper's pre-trained denoiser, which
    the device would run on the cloud's answer and its own clean vectors, is not built; a job's tail with a skip reads
    both and learns from the records, a head alone learns on noised answers.
    """

    name: ClassVar[str] = "snd"

    def __init__(self, params: SndParams, context: NoiseContext) -> None:
        same = {"noise_ratio": params.noise_ratio, "clip_ratio": params.clip_ratio}
        super().__init__(DChiParams(injection="embedding", **same), context)


class SplitAndPrivatize(DChi):
    """`sap`: Split-and-Privatize (Shen et al. 2023, arXiv 2312.15603): less noise on the contributing tokens.

    Departure: contribution is our token importance, not the paper's own score. The scale depends on the secret token,
    so no bound is left.
    """

    name: ClassVar[str] = "sap"
    uses_importance = True

    def __init__(self, params: SapParams, context: NoiseContext) -> None:
        super().__init__(params, context)
        self.params = params
        self.importance_from = params.importance_from

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
    vector is moved towards the prototype by hand, and clipped (the paper does not), which gives a bound: Laplace noise
    of scale b a coordinate on vectors in an L2 ball of radius R loses at most 2 * R * sqrt(D) / b a position, because
    the ball's L1 diameter is 2 * R * sqrt(D). Without clipping there is none. The bound holds for any prototypes, so
    it does not matter what they were made of.
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
        cluster_BT = self.targets.cluster_V[ids_BT]
        prototype_BTD = self.targets.centre_KD[cluster_BT.clamp(min=0)]
        pull_BT1 = self.params.pull * (cluster_BT >= 0).unsqueeze(-1)
        signal_BTD = h_BTD + pull_BT1 * (prototype_BTD - h_BTD)
        if self.clip is not None:
            signal_BTD = clip_rows(signal_BTD, self.clip)
        noise_BTD = generator.laplace(self.scale, *h_BTD.shape).to(signal_BTD.device, torch.float32)
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
        return {**facts, "clusters": self.targets.facts()}
