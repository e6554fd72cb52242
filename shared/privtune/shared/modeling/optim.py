"""AdamW, its learning-rate schedule and gradient clipping, for the top (cloud) and the head (device) alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from privtune.shared.job_spec import OptimSpec


def build_optimizer(params: Sequence[nn.Parameter] | Sequence[dict[str, Any]], spec: OptimSpec) -> torch.optim.AdamW:
    """AdamW over parameters or groups; a group without an `lr` of its own gets `spec.learning_rate`."""
    return torch.optim.AdamW(params, lr=spec.learning_rate, weight_decay=spec.weight_decay)


def build_schedule(
    optimizer: torch.optim.Optimizer, spec: OptimSpec, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rates of `rate`, step by step.

    The same rates as transformers' schedules, whose import would load peft: 150 MB that a device does not need.
    """
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(spec, total_steps, step))


def rate(spec: OptimSpec, total_steps: int, step: int) -> float:
    """The share of the peak learning rate at a step: warm-up over `warmup_ratio` of `total_steps`, then linear or
    cosine decay to zero, or constant.
    """
    warm_up = math.ceil(spec.warmup_ratio * total_steps)
    if step < warm_up:
        return step / warm_up
    rest = max(1, total_steps - warm_up)
    if spec.schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / rest)))
    return max(0.0, (total_steps - step) / rest) if spec.schedule == "linear" else 1.0


def clip_gradients(params: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale one side's gradients down to `max_norm` (0: no clipping); returns their L2 norm before that."""
    limit = max_norm if max_norm > 0 else math.inf
    return float(nn.utils.clip_grad_norm_(list(params), limit))
