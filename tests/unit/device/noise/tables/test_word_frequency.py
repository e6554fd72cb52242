"""Word frequencies: the public text first, then the order of the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from privtune.device.noise.tables.word_frequency import frequencies
from privtune.shared.modeling.partition import Bottom
from tests.support.noise_contexts import tiny_context


def test_frequencies_follow_the_public_text_then_the_vocabulary(bottom: Bottom) -> None:
    context = tiny_context(bottom, public_rows=[[2, 50, 50, 50, 60, 3], [2, 50, 3]])
    place = np.full(120, -1)
    place[context.usable_ids.numpy()] = np.arange(len(context.usable_ids))
    frequency = frequencies(context, place)
    assert frequency.sum() == pytest.approx(1.0)
    assert frequency.min() > 0
    assert frequency[place[50]] > frequency[place[60]] > frequency[place[61]]
