"""A curve as SVG, drawn by the server: no script, colours from the page's style, readable without seeing it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from privtune.shared.web.page_formats import number

WIDTH, HEIGHT = 300, 130
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 6, 8, 20
MOST_HOVERED = 40  # points that say their value under the mouse


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What is drawn.

    title: what the values are.
    points: (step, value), in order.
    steps: where the axis ends; the job's length.
    write: a value as text.
    unit: what follows it, but on the axis.
    tone: which colour of the style: `a` to `d`.
    """

    title: str
    points: Sequence[tuple[float, float]]
    steps: float
    write: Callable[[float], str] = number
    unit: str = ""
    tone: str = "a"

    @property
    def newest(self) -> str:
        """The last value."""
        return self.full(self.points[-1][1]) if self.points else "–"

    def full(self, value: float) -> str:
        """A value with its unit."""
        return f"{self.write(value)} {self.unit}".strip()

    @property
    def summary(self) -> str:
        """The curve in a sentence, for whoever can't see it."""
        values = [value for _, value in self.points]
        if not values:
            return f"{self.title}: nothing yet"
        between = f"from {self.full(min(values))} to {self.full(max(values))}"
        return f"{self.title} up to step {self.points[-1][0]:.0f}: {between}, now {self.newest}"


def svg(curve: Curve) -> str:
    """SVG text. Its classes are those of look.css."""
    top = _nice(max((value for _, value in curve.points), default=1.0))
    steps = max(curve.steps, curve.points[-1][0] if curve.points else 1, 1)

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / steps

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * max(0.0, value) / top

    places = [(x(step), y(value)) for step, value in curve.points]
    out = [f'<svg class="curve tone-{curve.tone}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" ']
    out.append(f'aria-label="{escape(curve.summary)}">')
    for part in (0, 0.5, 1):
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(top * part):.1f}" ')
        out.append(f'y2="{y(top * part):.1f}"/>{_text(_LEFT - 6, y(top * part) + 4, curve.write(top * part), "end")}')
    out.append(_text(_LEFT, HEIGHT - 5, "0", "start"))
    out.append(_text(WIDTH - _RIGHT, HEIGHT - 5, f"step {steps:,.0f}", "end"))
    if len(places) > 1:
        line = " ".join(f"{left:.1f},{height:.1f}" for left, height in places)
        out.append(f'<polygon class="under" points="{places[0][0]:.1f},{y(0)} {line} {places[-1][0]:.1f},{y(0)}"/>')
        out.append(f'<polyline class="line" points="{line}"/>')
    if places:
        out.append(f'<circle class="last" cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="3.5"/>')
    out.extend(_hovered(curve, places))
    return "".join([*out, "</svg>"])


def _hovered(curve: Curve, places: Sequence[tuple[float, float]]) -> list[str]:
    """Invisible columns that say a value under the mouse."""
    every = math.ceil(len(places) / MOST_HOVERED) or 1
    wide = (WIDTH - _LEFT - _RIGHT) / max(1, min(len(places), MOST_HOVERED))
    out = []
    for (step, value), (left, _) in list(zip(curve.points, places, strict=True))[::every]:
        says = escape(f"step {step:,.0f}: {curve.full(value)}")
        out.append(f'<rect class="spot" x="{left - wide / 2:.1f}" y="{_TOP}" width="{wide:.1f}" ')
        out.append(f'height="{HEIGHT - _TOP - _BOTTOM}"><title>{says}</title></rect>')
    return out


def _nice(most: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below it."""
    if not math.isfinite(most) or most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= most * (1 - 1e-9))


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
