"""The frontier as a picture: what an attacker recovers against the utility that is left. SVG, no script, no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 860, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 230, 46, 56
_LETTER = 0.56  # average width of a letter relative to the font size; the true width is known only when drawn
# Series differ in colour and in shape. Colours of Okabe & Ito 2008, which colour-blind readers can distinguish.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#8c564b", "#000000")
_SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting.

    series: points drawn alike and joined by a line.
    x, y: (value, low, high), shares between 0 and 1.
    """

    series: str
    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A target corner: x at most, y at least."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Level:
    """A height that needs no signal at all, drawn as a dashed line."""

    name: str
    y: float


def frontier(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    goals: Sequence[Goal] = (),
    level: Level | None = None,
    join: bool = True,
) -> str:
    """SVG text: every point with its intervals, one line per series, goals as shaded corners, a legend."""
    x_axis = _Axis([v for p in points for v in p.x] + [goal.x for goal in goals] + [0.0], _LEFT, WIDTH - _RIGHT)
    levels = [] if level is None else [level.y]
    y_axis = _Axis([v for p in points for v in p.y] + [goal.y for goal in goals] + levels, HEIGHT - _BOTTOM, _TOP)
    longest = max((len(p.series) for p in points), default=0)
    width = max(WIDTH, WIDTH - _RIGHT + 44 + int(13 * _LETTER * longest))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="13" color="#222">',
        "<style>@media (prefers-color-scheme: dark) {svg {color: #ddd}}</style>",
        f'<text x="{_LEFT}" y="24" font-size="16" font-weight="600" fill="currentColor">{escape(title)}</text>',
        *_frame(x_axis, y_axis, x_label, y_label),
    ]
    names = _Names()
    for place, goal in enumerate(goals):
        x, y = x_axis.at(goal.x), y_axis.at(goal.y)
        names.take(_LEFT + 4, y - 6 - 14 * place, goal.name)
        out.append(
            f'<rect x="{_LEFT}" y="{_TOP}" width="{x - _LEFT:.1f}" height="{y - _TOP:.1f}" fill="#009e73" '
            'opacity="0.1"/>'
            f'<text x="{_LEFT + 4}" y="{y - 6 - 14 * place:.1f}" fill="#009e73" font-size="11">'
            f"{escape(goal.name)}</text>"
        )
    if level is not None:
        y, right = y_axis.at(level.y), WIDTH - _RIGHT
        out.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="currentColor" stroke-opacity="0.7" '
            f'stroke-dasharray="5 4"/>{_text(right - 6, y - 5, level.name, "end", 11)}'
        )
    for number, series in enumerate(dict.fromkeys(p.series for p in points)):
        mine = sorted((p for p in points if p.series == series), key=lambda p: p.x[0])
        out += _series(mine, number, x_axis, y_axis, join)
        y = _TOP + 12 + 20 * number
        out.append(_mark(WIDTH - _RIGHT + 22, y - 4, number))
        out.append(f'<text x="{WIDTH - _RIGHT + 34}" y="{y}" fill="currentColor">{escape(series)}</text>')
    out += _named(points, x_axis, y_axis, names)
    return "\n".join([*out, "</svg>"]) + "\n"


class _Names:
    """Places that names already take, so that no two names overlap."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float]] = []

    def take(self, x: float, y: float, name: str) -> float:
        """Take the free height nearest to y for a name that begins at x."""
        end = x + 11 * _LETTER * len(name)
        steps = sorted(range(-12, 13), key=lambda step: (abs(step), step))
        heights = [y + 12 * step for step in steps if _TOP < y + 12 * step < HEIGHT - _BOTTOM]
        free = (
            height
            for height in heights
            if not any(abs(height - h) < 12 and x < e and b < end for b, e, h in self._taken)
        )
        height = next(free, y)
        self._taken.append((x, end, height))
        return height


class _Axis:
    """Maps shares to pixels; the range is rounded out to steps."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        spread = max(high - low, 0.02)
        self.step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if spread / s <= 8 or s == 0.2)
        self.low = max(0.0, int(low / self.step) * self.step)
        self.high = min(1.0, (int(high / self.step) + 1) * self.step)
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    out = []
    for value in x_axis.ticks():
        x = x_axis.at(value)
        out.append(_line(x, _TOP, x, bottom, 0.12) + _text(x, bottom + 20, f"{100 * value:.0f}%", "middle"))
    for value in y_axis.ticks():
        y = y_axis.at(value)
        out.append(_line(_LEFT, y, right, y, 0.12) + _text(_LEFT - 8, y + 4, f"{100 * value:.0f}%", "end"))
    out.append(_line(_LEFT, bottom, right, bottom, 0.6) + _line(_LEFT, _TOP, _LEFT, bottom, 0.6))
    out.append(_text((_LEFT + right) / 2, HEIGHT - 12, x_label, "middle"))
    middle = (_TOP + bottom) / 2
    out.append(
        f'<text x="18" y="{middle}" text-anchor="middle" fill="currentColor" transform="rotate(-90 18 {middle})">'
        f"{escape(y_label)}</text>"
    )
    return out


def _series(points: Sequence[Point], number: int, x_axis: _Axis, y_axis: _Axis, join: bool) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    out = []
    places = [(x_axis.at(p.x[0]), y_axis.at(p.y[0])) for p in points]
    if join:
        out += [_line(*first, *second, 0.5, colour) for first, second in pairwise(places)]
    for point, (x, y) in zip(points, places, strict=True):
        label = f"{point.series}, {point.name}: recovered {100 * point.x[0]:.1f}%, task {100 * point.y[0]:.1f}%"
        bars = _line(x_axis.at(point.x[1]), y, x_axis.at(point.x[2]), y, 0.45, colour)
        bars += _line(x, y_axis.at(point.y[1]), x, y_axis.at(point.y[2]), 0.45, colour)
        out.append(f"<g><title>{escape(label)}</title>{bars}{_mark(x, y, number)}</g>")
    return out


def _named(points: Sequence[Point], x_axis: _Axis, y_axis: _Axis, names: _Names) -> list[str]:
    """The names; the leftmost points choose their heights first."""
    out = []
    for point in sorted(points, key=lambda p: p.x[0]):
        x, y = x_axis.at(point.x[0]), y_axis.at(point.y[0])
        inward = x > WIDTH - _RIGHT - 90  # at the right edge a name would run into the legend
        begin = x - 8 - 11 * _LETTER * len(point.name) if inward else x + 8
        height = names.take(begin, y - 7, point.name)
        if abs(height - (y - 7)) > 12:  # so far away that it may look like another point's
            out.append(_line(x, y, x - 10 if inward else x + 10, height - 3, 0.3))
        out.append(_text(x - 8 if inward else x + 8, height, point.name, "end" if inward else "start", 11))
    return out


def _mark(x: float, y: float, number: int) -> str:
    colour, shape = _COLOURS[number % len(_COLOURS)], _SHAPES[number % len(_SHAPES)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
    around = {
        "square": ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle": ((0, -6), (5.5, 4.5), (-5.5, 4.5)),
    }[shape]
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in around)
    return f'<polygon points="{corners}" fill="{colour}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, opacity: float, colour: str = "currentColor") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-opacity="{opacity}" '
        'stroke-width="1.5"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, size: int = 13) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="currentColor">'
        f"{escape(text)}</text>"
    )
