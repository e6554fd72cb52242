"""The curves of a job, from its points as REST gives them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

from privtune.shared.web.chart import Curve
from privtune.shared.web.page_formats import number, size

_OVER = 5  # points that a rate is the mean of
_LONG = 20  # times the usual time between two points: a pause, of which no rate is shown


def curves_of(points: list[dict[str, Any]], total_steps: int) -> list[Curve]:
    """Throughput, bytes, and what else the cloud knows."""
    steps = float(total_steps)
    found = [
        Curve(title="Throughput", points=_rates(points), steps=steps, unit="tokens/s"),
        _curve("Received", "b", "bytes_up", points, steps, size),
        _curve("Sent", "c", "bytes_down", points, steps, size),
    ]
    known = (
        _curve("Loss", "d", "loss", points, steps, number),
        _curve("Held-out loss", "d", "held_out_loss", points, steps, number),
        _curve("Held-out accuracy", "b", "accuracy", points, steps, lambda share: f"{number(100 * share)}%"),
        _curve("Gradient norm", "d", "grad_norm", points, steps, number),
    )
    return [*found, *(curve for curve in known if curve.points)]


def _curve(
    title: str, tone: str, name: str, points: list[dict[str, Any]], steps: float, write: Callable[[float], str]
) -> Curve:
    values = [(one["step"], one[name]) for one in points if one[name] is not None]
    return Curve(title=title, points=values, steps=steps, write=write, tone=tone)


def _rates(points: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Tokens a second, each over the last few points; pauses count neither as time nor as tokens."""
    spans = [(new["step"], new["at"] - old["at"], new["tokens"] - old["tokens"]) for old, new in pairwise(points)]
    usual = median([seconds for _, seconds, _ in spans] or [0.0])
    spans = [span for span in spans if span[1] <= max(_LONG * usual, 10.0)]
    rates = []
    for end in range(1, len(spans) + 1):
        last = spans[max(0, end - _OVER) : end]
        seconds = sum(one[1] for one in last)
        if seconds > 0:
            rates.append((last[-1][0], sum(one[2] for one in last) / seconds))
    return rates
