import numpy as np
import pytest
import torch

from privtune.device.audit.attacks import channels
from privtune.device.noise.importance import TokenImportance
from privtune.device.noise.mechanisms.none import NoMechanism
from privtune.shared.errors import InvalidInput
from tests.support.builders import dataset


def data_of(records, classes=3):
    labels = np.random.default_rng(0).integers(classes, size=len(records))
    return dataset(records, labels, "abc"[:classes])


def test_labels_lie_in_the_direction_of_head_gradients(make_lab, partition, attacked):
    lab = make_lab("dchi")
    data = data_of(attacked)
    plain, private = channels.label_from_gradients(lab.victim, partition.top(1), partition.head(), data, "first")
    assert plain.figure.value > 0.9
    assert plain.figure.floor == pytest.approx(np.bincount(data.labels).max() / len(data))
    # Three classes, epsilon 2: 79 in 100 labels are true; there are 60 records.
    assert private.figure.value <= 0.97
    assert private.figure.floor == plain.figure.floor
    bare = dataset(data.ids)
    with pytest.raises(InvalidInput, match="have none"):
        channels.label_from_gradients(lab.victim, partition.top(1), partition.head(), bare, "first")


def test_averaging_gains_only_where_noise_is_drawn_anew(make_lab, attacked):
    lab = make_lab("dchi", {"noise_ratio": 2.0})
    fresh, stored = channels.averaging(lab, attacked)
    assert fresh.figure.value > fresh.figure.floor + 0.1
    assert stored.figure.low - 0.05 <= stored.figure.floor <= stored.figure.high + 0.05
    assert "identical bytes" in stored.text


def test_equal_bytes_link_records_and_noise_unlinks_them(make_lab, attacked):
    same, other = channels.linkage(make_lab("dchi", {"noise_ratio": 30.0}).victim, attacked)
    assert same.figure.value == 1
    assert other.figure.value < 0.5
    _, weak = channels.linkage(make_lab("dchi", {"noise_ratio": 0.1}).victim, attacked)
    assert weak.figure.value > 0.9


def test_importance_shows_in_the_length_of_vectors(make_lab, attacked):
    weight_V = torch.linspace(0, 1, 64)
    importance = TokenImportance(weight_V, 1.0)
    plain = channels.importance_from_radius(make_lab("dchi").victim.observe(attacked), importance)

    class Scaled(NoMechanism):
        def _release(self, ids_BT, h_BTD, mask_BT, importance_BT, generator):
            noise_BTD = generator.normal(*h_BTD.shape) * (2 - weight_V[ids_BT]).unsqueeze(-1) * 5
            return super()._release(ids_BT, h_BTD + noise_BTD, mask_BT, importance_BT, generator)

    lab = make_lab(kind=Scaled)
    shown = channels.importance_from_radius(lab.victim.observe(attacked), importance)
    assert shown.figure.value > 0.6 > plain.figure.value
