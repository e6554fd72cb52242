"""Labels from the gradients of a whole training, by an attacker who knows the defence.

First the label that each record TRAINS with, which no scaling or shuffling of gradients hides: by the direction of the
gradients at the head's input over all epochs together, by their sign, by their length. Then the true label: the cloud
combines it with what its own tuned model says about the record (`with_text`). E epochs, B records, D width, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from privtune.device.audit.attacks.channels import spherical_kmeans
from privtune.device.model.objectives import loss_N
from privtune.device.privacy.bounds import label_truth

FOLDS = 5
_STEPS = 300


def by_direction(gradients_EBD: Tensor, classes: int) -> Tensor:
    """Cluster of each record's gradient directions, all epochs concatenated."""
    joint_BD = nn.functional.normalize(gradients_EBD, dim=2).transpose(0, 1).flatten(1)
    return spherical_kmeans(nn.functional.normalize(joint_BD, dim=1), classes)


def by_sign(gradients_EBD: Tensor) -> Tensor:
    """Sign along the main axis of each epoch's gradients, by majority over the epochs; for two classes only.

    The sign of an axis is arbitrary, so that of each epoch is flipped to agree with the first.
    """
    sides: list[Tensor] = []
    for gradients_BD in gradients_EBD:
        axis_D = torch.linalg.svd(gradients_BD, full_matrices=False).Vh[0]
        side_B = (gradients_BD @ axis_D).sign()
        sides.append(side_B if not sides or side_B @ sides[0] >= 0 else -side_B)
    return (torch.stack(sides).sum(0) >= 0).long()


def by_length(gradients_EBD: Tensor, classes: int) -> Tensor:
    """Quantile of each record's mean log length: one number, split into classes of equal size."""
    length_B = gradients_EBD.norm(dim=2).clamp_min(1e-30).log().mean(0)
    edges = torch.quantile(length_B, torch.linspace(0, 1, classes + 1)[1:-1])
    return torch.bucketize(length_B, edges)


def text_log_odds(
    states_BD: Tensor, revealed_B: Tensor, classes: int, label_epsilon: float | None, seed: int
) -> Tensor:
    """log p_BC of each record's label given the tuned model's final states, by a classifier trained on the others.

    It learns from the labels that the gradients revealed, with the loss that knows how they were randomised.
    """
    states_BD = (states_BD - states_BD.mean(0)) / states_BD.std(0).clamp_min(1e-6)
    fold_B = torch.from_numpy(np.random.default_rng(seed).permutation(len(revealed_B)) % FOLDS)
    out_BC = torch.zeros(len(revealed_B), classes)
    for fold in range(FOLDS):
        others = fold_B != fold
        probe = nn.Linear(states_BD.shape[1], classes)
        nn.init.zeros_(probe.weight)
        nn.init.zeros_(probe.bias)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=1.0)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            loss = loss_N(probe(states_BD[others]), revealed_B[others], label_epsilon).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            out_BC[~others] = probe(states_BD[~others]).log_softmax(1)
    return out_BC


def with_text(text_BC: Tensor, revealed_B: Tensor, label_epsilon: float | None) -> Tensor:
    """The likeliest true label: the text's evidence, combined with the revealed label and how it was randomised."""
    if label_epsilon is None:
        return revealed_B
    classes = text_BC.shape[1]
    truth = label_truth(label_epsilon, classes)
    given_BC = truth * nn.functional.one_hot(revealed_B, classes) + (1 - truth) / classes
    return (text_BC + given_BC.log()).argmax(1)
