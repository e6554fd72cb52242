"""A tiny real bottom, a made-up language with structure, and the laboratory of an attacker."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.public_knowledge import PublicText
from privtune.device.audit.victim import Victim
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.registry import build
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.partition import Partition
from tests.support.tiny_models import VOCAB, WIDTH, tiny_classifier, tiny_tokenizer


def sentences(count: int, seed: int) -> list[np.ndarray]:
    """Rows of ids in which each word makes some next words likely; the first words of the vocabulary are frequent."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, VOCAB - 3)
    rows = []
    for _ in range(count):
        words = [int(rng.choice(VOCAB - 4, p=frequency / frequency.sum()))]
        for _ in range(int(rng.integers(4, 12))):
            follows = (words[-1] * 7 + 3) % (VOCAB - 4)
            words.append(follows if rng.random() < 0.5 else int(rng.choice(VOCAB - 4, p=frequency / frequency.sum())))
        rows.append(np.array([2, *(w + 4 for w in words), 3], dtype=np.int32))
    return rows


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def partition():
    return Partition(tiny_classifier("bert"))


@pytest.fixture(scope="session")
def make_lab(partition):
    """make_lab(mechanism, params, cut=1, records=200) -> Lab"""

    def make(name="none", params=None, cut=1, records=200):
        bottom = partition.bottom(cut)
        context = NoiseContext.for_model(bottom, tiny_tokenizer(), hidden_size=WIDTH, cut=cut, longest=40)
        mechanism = build(MechanismSpec(name=name, params=params or {}), context)
        public = PublicText(sentences(records, seed=0), context.special_ids, candidates=context.usable_ids)
        return Lab(public, Victim(bottom, mechanism, context.special_ids), partition.top(cut))

    return make


@pytest.fixture(scope="session")
def attacked():
    return sentences(60, seed=1)
