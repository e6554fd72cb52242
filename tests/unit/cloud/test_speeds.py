"""Speeds are those of the latest steps, and unknown before the first."""

import pytest

from privtune.cloud.speeds import Speeds


def test_unknown_before_the_first_step():
    assert Speeds().of("enc") == {"train": None, "forward": None}


def test_a_step_in_parts_counts_once():
    speeds = Speeds()
    for _ in range(50):
        speeds.add("enc", "train", 1000, 0.1)  # forward
        speeds.add("enc", "train", 0, 0.1)  # backward
    assert speeds.of("enc")["train"] == pytest.approx(5000, rel=0.02)
    assert speeds.of("enc")["forward"] is None
    assert speeds.of("dec")["train"] is None


def test_older_steps_are_forgotten():
    speeds = Speeds()
    for seconds in [10.0] * 100 + [0.1] * 1000:
        speeds.add("enc", "forward", 1000, seconds)
    assert speeds.of("enc")["forward"] == pytest.approx(10_000, rel=0.1)
