"""Clipping: vectors of bounded length, without which additive noise has no worst-case bound."""

from __future__ import annotations

from torch import Tensor

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.params import ClipParams


def clip_radius(params: ClipParams, context: NoiseContext) -> float | None:
    """The clipping length R in the model's units; None when clipping is off."""
    if params.clip is not None:
        return params.clip
    return params.clip_ratio * context.typical_norm(params.injection) or None


def clip_rows(h_BTD: Tensor, radius: float) -> Tensor:
    """Shorten every vector (last dimension) to L2 norm at most `radius`; shorter ones stay as they are.

    A projection onto a ball never enlarges a distance. The radius is reduced by a factor of 1e-6 against rounding.
    """
    norm_BT1 = h_BTD.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    clipped_BTD: Tensor = h_BTD * (radius * (1 - 1e-6) / norm_BT1).clamp(max=1.0)
    return clipped_BTD


def reach(h_BTD: Tensor, radius: float) -> Tensor:
    """How far any vector of the ball is from each of these, as a share of the ball's diameter; 1/2 to 1, (B, T)."""
    share_BT: Tensor = (h_BTD.norm(dim=-1) / radius + 1).div(2).clamp(max=1.0)
    return share_BT
