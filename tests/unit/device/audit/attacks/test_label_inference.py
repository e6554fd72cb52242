"""The label attack on gradients of a made-up head: it reads what trains, and does no worse for knowing the defence."""

import numpy as np
import pytest
import torch

from privtune.device.audit.attacks import label_inference as attack
from privtune.device.audit.attacks.channels import called
from privtune.device.noise.randomness import OsNoise
from privtune.device.privacy.bounds import krr_keep_probability
from privtune.device.release.label_store import draw

EPSILON, RECORDS, EPOCHS, WIDTH = 1.0, 4000, 3, 16


def world(classes):
    """True labels, randomised ones, states that reveal the true ones in part, and gradients W'(p - y) of each epoch."""
    rng = np.random.default_rng(0)
    true_B = rng.integers(classes, size=RECORDS)
    told_B = draw(true_B, [{}] * RECORDS, classes, EPSILON, OsNoise())
    means_CD = rng.normal(size=(classes, WIDTH))
    states_BD = torch.from_numpy(means_CD[true_B] + 2 * rng.normal(size=(RECORDS, WIDTH))).float()
    gradients = []
    for _ in range(EPOCHS):
        weight_CD = torch.from_numpy(rng.normal(size=(classes, WIDTH))).float()
        p_BC = torch.from_numpy(rng.dirichlet(np.ones(classes), size=RECORDS)).float()
        gradients.append((p_BC - torch.nn.functional.one_hot(torch.from_numpy(told_B), classes)) @ weight_CD)
    return torch.from_numpy(true_B), torch.from_numpy(told_B), states_BD, torch.stack(gradients)


def share(guess_B, labels_B):
    return float((guess_B == labels_B).float().mean())


@pytest.mark.parametrize("classes", [2, 4])
def test_direction_reads_the_label_that_trains_and_epochs_add_nothing(classes):
    true_B, told_B, _, gradients_EBD = world(classes)
    one, all_epochs = (attack.by_direction(part, classes) for part in (gradients_EBD[:1], gradients_EBD))
    assert share(called(all_epochs, told_B), told_B) > 0.97
    keep = krr_keep_probability(EPSILON, classes)
    for cluster_B in (one, all_epochs):
        assert share(called(cluster_B, true_B), true_B) <= keep + 0.03


def test_sign_does_as_well_for_two_classes_and_length_tells_nothing():
    true_B, told_B, _, gradients_EBD = world(2)
    assert share(called(attack.by_sign(gradients_EBD), told_B), told_B) > 0.99
    assert share(called(attack.by_length(gradients_EBD, 2), true_B), true_B) < 0.55


def test_text_and_gradient_together_beat_either():
    true_B, told_B, states_BD, _ = world(2)
    text_BC = attack.text_log_odds(states_BD, told_B, 2, EPSILON, seed=0)
    text, told = share(text_BC.argmax(1), true_B), share(told_B, true_B)
    assert text > 0.8, "the states reveal most labels, and the loss that knows the draw learns that from it"
    assert share(attack.with_text(text_BC, told_B, EPSILON), true_B) >= max(text, told)
    assert torch.equal(attack.with_text(text_BC, told_B, None), told_B)


def test_a_text_that_tells_nothing_leaves_the_draw():
    true_B, told_B, _, _ = world(2)
    noise_BD = torch.randn(RECORDS, WIDTH, generator=torch.Generator().manual_seed(1))
    text_BC = attack.text_log_odds(noise_BD, told_B, 2, EPSILON, seed=0)
    assert share(attack.with_text(text_BC, told_B, EPSILON), true_B) <= krr_keep_probability(EPSILON, 2) + 0.03
