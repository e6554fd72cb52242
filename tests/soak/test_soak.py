"""A small form of `make soak`: a few devices for seconds, with storms. What is slow there is for the long form."""

from __future__ import annotations

from tests.soak.bench import Plan, soak


def test_devices_lose_no_step_in_storms(tmp_path):
    found = soak(Plan(seconds=6, clients=4, agents=1, seed=1, think_s=0.0, storm_s=2), tmp_path)
    assert not found.wrong
    assert found.storms > 0
    assert found.counts["jobs"] >= 4
    assert found.agent_jobs >= 1
    assert found.idle_ms
    assert found.load_ms
