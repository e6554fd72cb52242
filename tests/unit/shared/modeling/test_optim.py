from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from privtune.shared.job_spec import OptimSpec
from privtune.shared.modeling.optim import build_optimizer, build_schedule, clip_gradients


@pytest.mark.parametrize(
    ("kind", "last"), [("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)], ids=["linear", "cosine", "constant"]
)
def test_schedules_warm_up_and_end(kind, last):
    spec = OptimSpec(learning_rate=0.1, schedule=kind, warmup_ratio=0.2)
    optimizer = build_optimizer([nn.Parameter(torch.ones(2))], spec)
    schedule = build_schedule(optimizer, spec, total_steps=10)
    rates = [schedule.get_last_lr()[0]]
    for _ in range(10):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates[:3] == pytest.approx([0.0, 0.05, 0.1])
    assert rates[-1] == pytest.approx(last * 0.1, abs=1e-9)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "ratio"), [(50, 0.06), (7, 0.5), (3, 1.0), (5, 0.0)])
def test_the_rates_are_those_of_transformers(kind, steps, ratio):
    spec = OptimSpec(schedule=kind, warmup_ratio=ratio)
    ours = build_optimizer([nn.Parameter(torch.ones(2))], spec)
    theirs = build_optimizer([nn.Parameter(torch.ones(2))], spec)
    schedule = build_schedule(ours, spec, steps)
    known = get_scheduler(
        "constant_with_warmup" if kind == "constant" else kind,
        theirs,
        num_warmup_steps=math.ceil(ratio * steps),
        num_training_steps=steps,
    )
    for _ in range(steps + 1):
        assert schedule.get_last_lr() == pytest.approx(known.get_last_lr(), rel=1e-12, abs=1e-15)
        for optimizer, each in ((ours, schedule), (theirs, known)):
            optimizer.step()
            each.step()


def test_groups_keep_their_own_rate_and_weight_decay_comes_from_the_spec():
    spec = OptimSpec(learning_rate=0.1, weight_decay=0.3)
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = build_optimizer([{"params": [first], "lr": 0.2}, {"params": [second]}], spec)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.2, 0.3), (0.1, 0.3)]


def test_clipping_returns_the_norm_before_and_zero_turns_it_off():
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 2.0)
    assert clip_gradients([parameter], 0.0) == pytest.approx(4.0)
    assert parameter.grad.norm() == pytest.approx(4.0)
    assert clip_gradients([parameter], 1.0) == pytest.approx(4.0)
    assert parameter.grad.norm() == pytest.approx(1.0, rel=1e-4)
    parameter.grad = torch.full((4,), math.nan)
    assert math.isnan(clip_gradients([parameter], 1.0))
