"""Random directions that a zeroth-order job moves its parameters along: public, and the same at every request.

MeZO (Malladi et al. 2023, arXiv 2305.17333): the slope of a loss along a random direction z, from the losses at
theta + scale z and theta - scale z, times z, is an estimate of its gradient. Either side makes z of its own parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from privtune.shared.modeling.seeding import seeded


def direction(parameters: Sequence[nn.Parameter], side: str, seed: int, step: int) -> list[Tensor]:
    """z of one step: standard normals in the shape of each parameter, drawn on the CPU whatever computes.

    side: whose parameters they are, "top" or "head".
    """
    with seeded("zeroth-order", side, seed, step):
        return [torch.randn(parameter.shape).to(parameter.device) for parameter in parameters]


@contextmanager
def moved(parameters: Sequence[nn.Parameter], z: Sequence[Tensor], by: float) -> Iterator[None]:
    """Inside, the parameters are at theta + by * z; afterwards at theta, bit for bit."""
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, ahead in zip(parameters, z, strict=True):
            parameter.add_(ahead, alpha=by)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)


def set_gradients(parameters: Sequence[nn.Parameter], z: Sequence[Tensor], slope: float) -> float:
    """The estimate slope * z as the parameters' gradients; returns its L2 norm."""
    for parameter, ahead in zip(parameters, z, strict=True):
        parameter.grad = ahead * slope
    return float(torch.stack([ahead.norm() for ahead in z]).norm()) * abs(slope) if z else 0.0
