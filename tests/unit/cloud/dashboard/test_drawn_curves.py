"""Curves from points: a rate leaves out pauses, and nothing is drawn that the cloud does not know."""

from privtune.cloud.dashboard.drawn_curves import curves_of

UNKNOWN = dict.fromkeys(("loss", "held_out_loss", "accuracy", "grad_norm"))


def point(step, at, **known):
    counted = {"tokens": 100 * step, "bytes_up": 5 * step, "bytes_down": step}
    return UNKNOWN | {"at": at, "step": step} | counted | known


def test_a_pause_is_no_slow_step():
    points = [point(step, 1.0 * step + (86_400 if step > 5 else 0)) for step in range(1, 11)]
    rates = curves_of(points, 10)[0]
    assert {round(rate) for _, rate in rates.points} == {100}
    assert rates.newest == "100 tokens/s"


def test_only_what_is_known_is_drawn():
    titles = [curve.title for curve in curves_of([point(1, 1.0)], 10)]
    assert titles == ["Throughput", "Received", "Sent"]
    known = {"loss": 0.5, "grad_norm": 1.0, "held_out_loss": 0.75, "accuracy": 0.875}
    drawn = {curve.title: curve.newest for curve in curves_of([point(1, 1.0, **known)], 10)[3:]}
    assert drawn == {"Loss": "0.5", "Held-out loss": "0.75", "Held-out accuracy": "87.5%", "Gradient norm": "1"}
    assert [curve.newest for curve in curves_of([], 0)] == ["–"] * 3
