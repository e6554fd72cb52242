"""How useful releases are for training, estimated before there is a job: a small classifier on frozen states.

B records, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.attribute import (
    AttributeSettings,
    mean_by_record,
    mean_states,
    pooled_classifier,
    train,
)
from privtune.device.audit.metrics import AttributeScore, Figure
from privtune.device.audit.observed import Seen
from privtune.device.data.encode import IntArray
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.seeding import seeded

_DRAWS = 3


def use_for_training(
    lab: Lab,
    settings: AttributeSettings,
    records: Sequence[IntArray],
    seen: Seen,
    labels_B: NDArray[np.int64],
    *,
    skip: bool,
) -> Figure:
    """Accuracy, on releases of `records`, of a classifier on the pre-trained model's final states.

    lab: labelled public text to learn from; its encoder is the whole top.
    skip: a skip connection feeds clean vectors into a tail, so the classifier also has their mean.
    Raises InvalidInput without labels or top.
    """
    if lab.public.labels is None or lab.encoder is None:
        raise InvalidInput("an estimate of utility needs labelled public records and the model above the cut")
    top, texts = lab.encoder, lab.public.records

    def features(of: Sequence[IntArray], released: Seen) -> Tensor:
        states_BD = mean_states(top, released)
        if not skip:
            return states_BD
        clean = lab.victim.clean(of).seen
        return torch.cat([states_BD, mean_by_record(clean.y_RD, clean)], dim=1)

    known_BD = torch.cat([features(texts, lab.victim.observe(texts).seen) for _ in range(_DRAWS)])
    known_B = torch.from_numpy(lab.public.labels)
    with seeded("audit-probe", 0):
        network: Module = pooled_classifier(known_BD.shape[1], settings.hidden, int(known_B.max()) + 1)
    train(network, lambda chosen: network(known_BD[chosen]), known_B.repeat(_DRAWS), settings, seed=0)
    score = AttributeScore(labels_B)
    with torch.no_grad():
        score.add(network(features(records, seen)).softmax(1))
    return score.figures()["accuracy"]
