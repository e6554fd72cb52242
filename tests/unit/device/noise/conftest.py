"""A reproducible noise source."""

import pytest

from privtune.device.noise.randomness import UNSAFE_SEED_ENV, noise_source


@pytest.fixture
def seeded(monkeypatch):
    monkeypatch.setenv(UNSAFE_SEED_ENV, "1")
    return noise_source(unsafe_seed=7)
