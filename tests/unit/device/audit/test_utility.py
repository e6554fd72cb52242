"""What training keeps under a mechanism: by the cloud's top, or by a tail that also reads clean vectors."""

import copy

import pytest
import torch

from privtune.device.audit.utility import UtilityTraining, measure_utility
from privtune.shared.errors import InvalidInput
from tests.support.builders import dataset
from tests.support.texts import half_labels, token_rows

TRAINING = UtilityTraining(epochs=12, batch=16, top_rate=3e-3, head_rate=1e-2)
NEARLY_NOTHING = {"codes": 2, "dims": 1}


def labelled(count, seed):
    rows = token_rows(count, seed)
    return dataset(rows, half_labels(rows), ("0", "1"))


def accuracy(lab, partition, train, held_out, *, tail=0, below=False, skip=True):
    found = measure_utility(
        lab.victim,
        partition.top(1, tail),
        partition.head(),
        train,
        held_out,
        readout=partition.readout,
        training=TRAINING,
        tail=partition.tail(tail) if tail else None,
        below=partition.below(1) if below else None,
        skip=skip,
    )
    return float(found.right_B.mean())


def test_a_tail_reads_past_a_mute_cloud_and_the_top_can_not(make_lab, partition):
    train, held_out = labelled(400, 1), labelled(200, 2)
    majority = max(held_out.labels.mean(), 1 - held_out.labels.mean())
    mute, clean = make_lab("codes", NEARLY_NOTHING), make_lab()
    assert accuracy(clean, partition, train, held_out) > majority + 0.1
    assert accuracy(mute, partition, train, held_out) < majority + 0.05
    assert accuracy(mute, partition, train, held_out, tail=1) > majority + 0.1
    assert accuracy(mute, partition, train, held_out, tail=1, below=True) > majority + 0.1
    assert accuracy(mute, partition, train, held_out, tail=1, skip=False) < majority + 0.05
    assert accuracy(clean, partition, train, held_out, tail=1, skip=False) > majority + 0.1


def test_nothing_that_was_given_is_changed(make_lab, partition):
    train, held_out = labelled(60, 1), labelled(20, 2)
    before = copy.deepcopy(partition.model.state_dict())
    first = accuracy(make_lab(), partition, train, held_out, tail=1, below=True)
    assert all(torch.equal(value, before[name]) for name, value in partition.model.state_dict().items())
    assert accuracy(make_lab(), partition, train, held_out, tail=1, below=True) == first


def test_a_skip_needs_a_row_a_token(make_lab, partition):
    train, held_out = labelled(60, 1), labelled(20, 2)
    with pytest.raises(InvalidInput, match="shortens records"):
        accuracy(make_lab("pool", {"clusters": False}), partition, train, held_out, tail=1)
