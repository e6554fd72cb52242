"""A small form of `make torture`: one job of each kind, each through several faults."""

from __future__ import annotations

import pytest

from tests.support.relay import Fault, State
from tests.torture.bench import Bench, Times

GRADIENT, OUTPUT = State("device", "GRADIENT"), State("cloud", "OUTPUT")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with Bench(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.mark.parametrize(
    ("job", "faults"),
    [
        (
            "top",
            [
                Fault(State("device", "FORWARD"), "duplicate", 2),
                Fault(GRADIENT, "kill device", 3),
                Fault(OUTPUT, "kill cloud", 9, after=True),
                Fault(State("cloud", "Commit"), "lost"),
            ],
        ),
        (
            "tail",
            [
                Fault(State("device", "FORWARD"), "kill device", 2, after=True),
                Fault(OUTPUT, "corrupt", 3),
                Fault(State("device", "CHECKPOINT"), "cut", 1, after=True),
            ],
        ),
    ],
    ids=["top", "tail"],
)
def test_a_job_ends_as_if_nothing_had_happened(bench, job, faults):
    story = bench.disturbed(job, faults)
    assert not story.unmet
    assert "killed" in story.runs


@pytest.fixture(scope="module")
def bedside(tmp_path_factory):
    with Bench(tmp_path_factory.mktemp("sleeps"), Times(lease_s=5, steps=40)) as made:
        yield made


@pytest.mark.parametrize("who", ["laptop", "cloud"])
def test_a_sleep_beyond_every_deadline_and_the_lease_changes_nothing(bedside, who):
    """A small form of `python -m tests.torture --sleep 600`."""
    assert bedside.slept("top", who, 6.0).runs[-1] == "done"
