"""The slopes of a zeroth-order job name labels under next to no noise, and no more than the claim allows under some."""

import contextlib
import math

import pytest
import torch

from privtune.device.audit.attacks.slope_labels import SlopeStep, labels_from_slopes, most_named
from privtune.device.noise.randomness import noise_source
from privtune.device.privacy.statements import SlopeStatement
from privtune.device.release.slope_store import SlopeStore
from privtune.device.release.slopes import Slopes

RECORDS, TIMES = 800, 6


def named(folder, epsilon, spread, **support):
    """The finding for a job whose records have random slopes, sampled by the device's own sampler."""
    generator = torch.Generator().manual_seed(0)
    labels_B = torch.arange(RECORDS) % 2
    claim = SlopeStatement(epsilon=epsilon, delta=1e-5, clip=1.0, times=TIMES, **support)
    steps = []
    with contextlib.closing(SlopeStore(folder)) as store:
        slopes = Slopes(statement=claim, store=store, source=noise_source())
        order = torch.cat([torch.randperm(RECORDS, generator=generator) for _ in range(TIMES)])
        for step, record_N in enumerate(order.split(20)):
            slope_NC = spread * torch.randn(20, 2, generator=generator, dtype=torch.float64)
            sent = slopes.released(step, slope_NC.gather(1, labels_B[record_N].unsqueeze(1)).flatten())
            steps.append(SlopeStep(record_N=record_N, slope_NC=slope_NC.clamp(-1, 1), total=20 * sent))
    return labels_from_slopes(steps, labels_B, claim)


def test_next_to_no_noise_hides_no_label(tmp_path):
    assert named(tmp_path, 1000.0, 2.0).figure.value >= 0.95


@pytest.mark.parametrize("support", ["whole", "rectified", "truncated"])
@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_noise_keeps_to_the_claim_at_the_largest_slopes_that_count(tmp_path, epsilon, support):
    # Every slope is at an end of the clipping interval.
    found = named(tmp_path, epsilon, 1e6, support=support, ratio=2.0)
    claim = SlopeStatement(epsilon=epsilon, delta=1e-5, clip=1.0, times=TIMES)
    assert found.figure.floor == 0.5
    assert 0.5 < most_named(claim) < 0.9
    chance = 5 * math.sqrt(0.25 / RECORDS)  # of noise from the operating system: five standard errors
    assert found.figure.value < most_named(claim) + chance
