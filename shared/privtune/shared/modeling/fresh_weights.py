"""Weights that a model's files lack, drawn from a seed: the same on every machine and through a bottom package."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from privtune.shared.job_spec import Task


def fresh_by_design(model: Any, task: Task) -> frozenset[str]:
    """Parameter names of a classifier's last linear layer outside the base; empty for a language model."""
    if task == "causal-lm":
        return frozenset()
    base = model.base_model_prefix + "."
    last = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.startswith(base)][-1]
    return frozenset(f"{last}.{name}" for name, _ in model.get_submodule(last).named_parameters())


def draw_fresh(model: Any, names: frozenset[str], seed: int) -> None:
    """Initialise parameters from (seed, name) alone: matrices normal with `initializer_range`, vectors zero."""
    for name, parameter in model.named_parameters():
        if name in names:
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            values = torch.zeros(parameter.shape)
            if parameter.dim() > 1:
                values.normal_(0.0, model.config.initializer_range, generator=generator)
            with torch.no_grad():
                parameter.copy_(values)
