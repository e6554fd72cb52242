import numpy as np
import pytest

from privtune.device.data.batches import BatchPlan, evaluation_batches
from privtune.shared.job_spec import TrainSpec


def plan(records=103, **train):
    lengths = np.random.default_rng(1).integers(3, 60, records)
    return BatchPlan(lengths, TrainSpec(**{"batch_size": 4, "accumulation": 2, "epochs": 2, **train}))


def test_every_record_once_per_epoch():
    p = plan()
    for epoch in range(2):
        steps = range(epoch * p.steps_per_epoch, (epoch + 1) * p.steps_per_epoch)
        seen = np.concatenate([np.concatenate(p.micro_batches(step)) for step in steps])
        assert sorted(seen) == list(range(103))
    assert p.total_steps == 2 * 13


def test_a_resume_needs_no_saved_position():
    np.testing.assert_array_equal(plan().micro_batches(17)[1], plan().micro_batches(17)[1])


def test_epochs_and_seeds_differ():
    first = np.concatenate(plan().micro_batches(0))
    assert not np.array_equal(first, np.concatenate(plan().micro_batches(13)))
    assert not np.array_equal(first, np.concatenate(plan(seed=1).micro_batches(0)))


def test_max_steps_and_micro_batch_sizes():
    p = plan(max_steps=5)
    assert p.total_steps == 5
    assert [len(m) for m in p.micro_batches(0)] in ([4, 4], [4, 3], [4])


def test_length_pools_cut_padding_to_under_half_of_random_order():
    lengths = np.random.default_rng(1).integers(3, 60, 4096)
    p = BatchPlan(lengths, TrainSpec(batch_size=16))
    rng = np.random.default_rng(0).permutation(4096).reshape(-1, 16)
    random_waste = sum(lengths[b].max() * 16 - lengths[b].sum() for b in rng)
    waste = sum(
        lengths[b].max() * len(b) - lengths[b].sum() for s in range(p.steps_per_epoch) for b in p.micro_batches(s)
    )
    assert waste < 0.5 * random_waste
    assert waste < 0.1 * lengths.sum()


@pytest.mark.parametrize("size", [1, 7, 200])
def test_evaluation_covers_everything_once(size):
    lengths = np.array([5, 3, 9, 1, 2])
    assert sorted(np.concatenate(evaluation_batches(lengths, size))) == [0, 1, 2, 3, 4]
