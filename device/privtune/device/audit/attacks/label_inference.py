"""Labels from the gradients of a whole training, by an attacker who knows the defence.

First the label that each record TRAINS with, which no scaling or shuffling of gradients hides: by the direction of the
gradients at the head's input over all epochs together, by their sign, by their length. Then the true label: the cloud
weighs that by what its own tuned model says of the record (`with_text`). E epochs, B records, D width, C classes.
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
    """Cluster of each record's gradient directions, those of all epochs side by side."""
    joint_BD = nn.functional.normalize(gradients_EBD, dim=2).transpose(0, 1).flatten(1)
    return spherical_kmeans(nn.functional.normalize(joint_BD, dim=1), classes)


def by_sign(gradients_EBD: Tensor) -> Tensor:
    """The side of the main axis of each epoch's gradients, by majority over the epochs: two classes only.

    Axes of different epochs have no common sign, so each is turned to agree with the first.
    """
    sides: list[Tensor] = []
    for gradients_BD in gradients_EBD:
        axis_D = torch.linalg.svd(gradients_BD, full_matrices=False).Vh[0]
        side_B = (gradients_BD @ axis_D).sign()
        sides.append(side_B if not sides or side_B @ sides[0] >= 0 else -side_B)
    return (torch.stack(sides).sum(0) >= 0).long()


def by_length(gradients_EBD: Tensor, classes: int) -> Tensor:
    """Quantile of each record's mean log length: the cloud's best cut of one number into classes of equal size."""
    length_B = gradients_EBD.norm(dim=2).clamp_min(1e-30).log().mean(0)
    edges = torch.quantile(length_B, torch.linspace(0, 1, classes + 1)[1:-1])
    return torch.bucketize(length_B, edges)


def text_log_odds(states_BD: Tensor, told_B: Tensor, classes: int, label_epsilon: float | None, seed: int) -> Tensor:
    """log p_BC of each record's label from the tuned model's final states, by a classifier that saw the others.

    It learns from the labels that were told by the gradients, with the loss that knows how they were randomised.
    """
    states_BD = (states_BD - states_BD.mean(0)) / states_BD.std(0).clamp_min(1e-6)
    fold_B = torch.from_numpy(np.random.default_rng(seed).permutation(len(told_B)) % FOLDS)
    out_BC = torch.zeros(len(told_B), classes)
    for fold in range(FOLDS):
        others = fold_B != fold
        probe = nn.Linear(states_BD.shape[1], classes)
        nn.init.zeros_(probe.weight)
        nn.init.zeros_(probe.bias)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=1.0)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            loss = loss_N(probe(states_BD[others]), told_B[others], label_epsilon).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            out_BC[~others] = probe(states_BD[~others]).log_softmax(1)
    return out_BC


def with_text(text_BC: Tensor, told_B: Tensor, label_epsilon: float | None) -> Tensor:
    """The likeliest true label: what the text says, weighed by what was told and how it was randomised."""
    if label_epsilon is None:
        return told_B
    classes = text_BC.shape[1]
    truth = label_truth(label_epsilon, classes)
    law_BC = truth * nn.functional.one_hot(told_B, classes) + (1 - truth) / classes
    return (text_BC + law_BC.log()).argmax(1)
