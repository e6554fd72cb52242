"""AdamW, its schedule and gradient clipping: the same code drives the top (cloud) and the head (device)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from shared.config import OptimSpec


def build_optimizer(
    params: Sequence[nn.Parameter] | Sequence[dict[str, Any]], spec: OptimSpec, lr: float | None = None
) -> torch.optim.AdamW:
    """AdamW over parameters or groups; groups may carry a `lr` of their own. Default lr: `spec.learning_rate`."""
    return torch.optim.AdamW(params, lr=spec.learning_rate if lr is None else lr, weight_decay=spec.weight_decay)


def build_schedule(
    optimizer: torch.optim.Optimizer, spec: OptimSpec, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The transformers schedule: warm-up over `warmup_ratio` of `total_steps`, then linear, cosine or constant."""
    kind = "constant_with_warmup" if spec.schedule == "constant" else spec.schedule
    schedule: torch.optim.lr_scheduler.LambdaLR = get_scheduler(
        kind,
        optimizer,
        num_warmup_steps=math.ceil(spec.warmup_ratio * total_steps),
        num_training_steps=total_steps,
    )
    return schedule


def clip_gradients(params: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale one side's gradients down to `max_norm` (0: leave them) and return their L2 norm before that."""
    limit = max_norm if max_norm > 0 else math.inf
    return float(nn.utils.clip_grad_norm_(list(params), limit))
