"""A small form of `make torture`: one job of each kind, each through several faults."""

from __future__ import annotations

import pytest

from tests.support.relay import Fault, State
from tests.torture.bench import Bench

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
