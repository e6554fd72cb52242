"""Who is busy how long, what overlaps, and what limits."""

from dataclasses import replace

import pytest

from privtune.device.plan.calibration import Calibration
from privtune.device.plan.forecast import CloudSpeed, times_of
from privtune.device.plan.line import Line
from privtune.device.plan.workload import Stage, Workload
from tests.support.builders import least_spec

HERE = Calibration(draw=1e-3, again=1e-4, learn=1e-3, score=1e-3, step=0.01, top=2e-3, rows=1.0, trained=0)
TRAINING = Stage(positions=1000, fresh=500, asked=1000, batches=20, up=1_000_000, down=100_000)
WORK = Workload(steps=20, widest=100, rows=500, stored=1000, training=TRAINING, evaluation=None)
CLOUD = CloudSpeed(train=1000.0, forward=3000.0, shared=False, source="the test")
FAST = Line(up=1e9, down=1e9, round_trip=0.0)
SPEC = least_spec(cut=1)


def test_a_slow_cloud_limits_and_the_device_overlaps():
    times = times_of(SPEC, WORK, HERE, CLOUD, FAST, blocks=5)
    assert times.device == pytest.approx(1.0 + 0.5 + 0.05 + 0.2)
    assert times.cloud == pytest.approx(5.0)
    assert times.limit == "cloud"
    assert times.total == pytest.approx(5.0 + 1.0)  # the cloud waits for losses, not for what is drawn ahead


def test_on_one_machine_both_take_turns():
    times = times_of(SPEC, WORK, HERE, replace(CLOUD, shared=True), FAST, blocks=5)
    assert times.total == pytest.approx(times.device + times.cloud)


@pytest.mark.parametrize(
    "line", [Line(up=50_000, down=1e9, round_trip=0.0), Line(up=1e9, down=5_000, round_trip=0.0)], ids=["up", "down"]
)
def test_a_slow_line_limits(line):
    times = times_of(SPEC, WORK, HERE, CLOUD, line, blocks=5)
    assert times.limit == "line"
    assert times.total == pytest.approx(20.0)


def test_a_long_line_costs_a_round_trip_for_each_answer_and_step():
    far = times_of(SPEC, WORK, HERE, CLOUD, replace(FAST, round_trip=0.5), blocks=5)
    near = times_of(SPEC, WORK, HERE, CLOUD, FAST, blocks=5)
    assert far.total - near.total == pytest.approx(0.5 * (20 + 20))


def test_an_unknown_cloud_is_no_zero():
    unknown = CloudSpeed.here(None, 5)
    times = times_of(SPEC, WORK, HERE, unknown, FAST, blocks=5)
    assert times.cloud is None
    assert (times + times).cloud is None
    assert times.limit == "device"


def test_this_machine_stands_in_for_a_cloud():
    assert CloudSpeed.here(2e-3, 5).forward == pytest.approx(2500.0)
