"""Which checkpoints are kept."""

import pytest
import torch

from privtune.shared.job_spec import OptimSpec
from privtune.shared.modeling.checkpoint import checkpoint_steps, keep_only, save_checkpoint
from privtune.shared.modeling.optim import build_optimizer, build_schedule


@pytest.fixture
def save(tmp_path):
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = build_optimizer([weight], OptimSpec())
    schedule = build_schedule(optimizer, OptimSpec(), 10)
    return lambda step, **options: save_checkpoint(tmp_path, step, {"weight": weight}, optimizer, schedule, **options)


def test_the_newest_and_the_newest_candidates_are_kept(save, tmp_path):
    for step in range(1, 9):
        save(step, candidate=step % 3 == 0, candidates=2)
    assert checkpoint_steps(tmp_path) == [3, 6, 7, 8]
    save(9, candidate=True, candidates=2)
    assert checkpoint_steps(tmp_path) == [6, 8, 9]
    keep_only(tmp_path, 6)
    assert checkpoint_steps(tmp_path) == [6]


def test_without_candidates_two_are_kept(save, tmp_path):
    for step in range(1, 5):
        save(step, candidate=True)
    assert checkpoint_steps(tmp_path) == [3, 4]
