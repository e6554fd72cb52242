"""One training loop for all of a teaching: resumable, and on a CPU the same whether it was interrupted or not.

The batch of a step is a function of the step and nothing is drawn (no dropout: the targets are no noisy labels), so a
checkpoint needs only weights, optimiser and schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from privtune.shared.errors import JobPaused, NonFinite
from privtune.shared.job_spec import OptimSpec
from privtune.shared.modeling.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint
from privtune.shared.modeling.optim import build_optimizer, build_schedule, clip_gradients

Watch = Callable[[str, int, int, float], None]  # stage, step, steps of the stage, loss so far
_SMOOTH = 0.95


def train_resumably(
    stage: str,
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    folder: Path,
    checkpoint_every: int,
    watch: Watch,
    stopped: Callable[[], bool],
) -> float:
    """Train parameters in place from the newest checkpoint in `folder` to the last step; the loss at the end, smoothed.

    loss: of a step's batch.
    stopped: asked after each step.

    Raises JobPaused once stopped, NonFinite where training diverges, StorageFull.
    """
    optim = OptimSpec(learning_rate=rate, weight_decay=0.01, warmup_ratio=0.05)
    optimizer = build_optimizer(list(parameters.values()), optim)
    schedule = build_schedule(optimizer, optim, steps)
    first, recent = max(checkpoint_steps(folder), default=0), torch.zeros(())
    if first:
        saved = load_checkpoint(folder, first, optimizer, schedule)
        recent = saved.pop("loss")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
    for step in range(first, steps):
        value = loss(step)
        if not torch.isfinite(value):
            raise NonFinite(f"{stage}: the loss is not a number; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        clip_gradients(parameters.values(), optim.max_grad_norm)
        optimizer.step()
        schedule.step()
        here = value.detach().cpu()
        recent = here if step == 0 else _SMOOTH * recent + (1 - _SMOOTH) * here
        watch(stage, step + 1, steps, float(recent))
        ending = stopped()
        if ending or (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            save_checkpoint(folder, step + 1, {**parameters, "loss": recent}, optimizer, schedule)
        if ending and step + 1 < steps:
            raise JobPaused(f"stopped after step {step + 1} of {stage}; it continues from there")
    return float(recent)
