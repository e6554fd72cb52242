"""Gradient checkpointing: keep only the input of each block and recompute the rest in the backward pass.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from privtune.shared.modeling.partition import Top


def recompute_blocks(top: Top) -> None:
    """Make every block of the top recompute its activations, in place. Gradients stay exactly the same.

    Dropout and mixed precision repeat the forward pass. The backward pass changes torch's random state and restores
    it: no other thread may draw random numbers meanwhile (`privtune.shared.modeling.seeding`).
    """
    for name in top.block_names:
        block = top.task.get_submodule(name)
        block.__dict__["forward"] = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
