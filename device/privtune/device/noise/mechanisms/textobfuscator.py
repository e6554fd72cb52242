"""`textobfuscator`: the release of TextObfuscator."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from privtune.device.noise.base import Mechanism, Release
from privtune.device.noise.clipping import clip_radius, clip_rows
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.params import ClusterParams, TextObfuscatorParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.cluster_table import ClusterTable
from privtune.device.privacy.statements import Statement
from privtune.device.privacy.statements.added_noise import laplace_statement
from privtune.device.privacy.statements.no_bound import no_bound_statement


class TextObfuscator(Mechanism):
    """TextObfuscator (Zhou et al. 2023, Findings of ACL): vectors pulled towards a prototype, then Laplace noise.

    Loss: at most 2 * R * sqrt(D) / b per position for noise of scale b on each coordinate of vectors clipped to an L2
    ball of radius R, whose L1 diameter is 2 * R * sqrt(D); unbounded without clipping. The bound holds for any
    prototypes, whatever they were made from.
    Departure: the paper trains the encoder so that words gather around their prototype. Our bottom is frozen, so the
    vector is moved towards the prototype explicitly, and clipped, which the paper does not do.
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
        self.targets = ClusterTable(clusters, context, params.injection)

    def resolved(self) -> dict[str, float]:
        """The clipping length, relative to the typical vector length."""
        return {"clip_ratio": self.clip / self.context.typical_norm(self.injection) if self.clip else math.inf}

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        cluster_BT = self.targets.cluster_V[ids_BT]
        prototype_BTD = self.targets.centre_KD[cluster_BT.clamp(min=0)]
        pull_BT1 = self.params.pull * (cluster_BT >= 0).unsqueeze(-1)
        signal_BTD = h_BTD + pull_BT1 * (prototype_BTD - h_BTD)
        share_BT = None
        if self.clip is not None:
            signal_BTD = clip_rows(signal_BTD, self.clip)
            # The ball's farthest point in L1 is R sqrt(D) from its centre.
            share_BT = (signal_BTD.abs().sum(dim=-1) / (self.clip * math.sqrt(self.dim)) + 1).div(2).clamp(max=1.0)
        noise_BTD = generator.laplace(self.scale, *h_BTD.shape).to(signal_BTD.device, torch.float32)
        return Release(h_BTD=signal_BTD + noise_BTD, mask_BT=mask_BT, share_BT=share_BT)

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
