"""The table of protections, as `privtune protections` prints it and the README holds it."""

from __future__ import annotations

from typing import Any

from privtune.device.protections.measured import NOT_MEASURED, MeasuredRow, measured, points
from privtune.device.protections.protection import PROTECTIONS, Protection

HEADINGS = (
    "protection",
    "an informed attacker reads",
    "a strong one",
    "points lost",
    "cloud gain, points",
    "MB up / down",
    "seconds",
    "claim",
)


def first_line(chosen: Protection) -> str:
    """The protection in one sentence; one under which the cloud adds nothing measurable says so first."""
    row = _row(chosen)
    nothing = f"{row.gain_sentence()} " if row is not None and row.adds_nothing else ""
    return f"{chosen.name}: {nothing}{chosen.summary[0].upper()}{chosen.summary[1:]}."


def table() -> list[tuple[str, ...]]:
    """The cells of each protection under `HEADINGS`."""
    return [_cells(chosen, _row(chosen)) for chosen in PROTECTIONS.values()]


def markdown() -> str:
    """The table as Markdown."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *table()]
    return "\n".join(f"| {' | '.join(cells)} |".replace("| --- ", "|---").replace("--- |", "---|") for cells in lines)


def listing() -> list[dict[str, Any]]:
    """Every protection, JSON-ready: its settings for both tasks and what was measured of them."""
    found = []
    for chosen in PROTECTIONS.values():
        row = _row(chosen)
        found.append(
            {
                "name": chosen.name,
                "first_line": first_line(chosen),
                "claim": chosen.claim,
                "settings": {task: chosen.fields(task) for task in ("classification", "causal-lm")},
                "measured": None if row is None else row.model_dump(),
            }
        )
    return found


def _row(chosen: Protection) -> MeasuredRow | None:
    return measured(chosen.fields("classification"))


def _cells(chosen: Protection, row: MeasuredRow | None) -> tuple[str, ...]:
    traffic = None if row is None else row.traffic
    drop, gain = (None, None) if row is None else (row.drop, row.gain)
    return (
        f"`{chosen.name}`",
        _read(chosen, row),
        _strong(chosen, row),
        NOT_MEASURED if drop is None else points(drop),
        NOT_MEASURED if gain is None else points(gain),
        NOT_MEASURED if traffic is None else f"{_mb(traffic.bytes_up)} / {_mb(traffic.bytes_down)}",
        NOT_MEASURED if traffic is None else f"{traffic.seconds:.0f}",
        chosen.claim,
    )


def _read(chosen: Protection, row: MeasuredRow | None) -> str:
    if chosen.name == "none":
        return "every word"
    if chosen.name == "names":
        share = NOT_MEASURED if row is None or row.clear is None else f"{row.clear:.0%}"
        return f"every word not replaced (of content words: {share})"
    if row is None or row.informed is None or row.content is None:
        return NOT_MEASURED
    return f"{row.informed[0]:.1%} of all, {row.content[0]:.1%} of content words"


def _strong(chosen: Protection, row: MeasuredRow | None) -> str:
    if chosen.name == "none":
        return "every word"
    if row is not None and row.replaced is not None:
        return f"the same, and {row.replaced[0]:.1%} of what was replaced (floor {row.replaced[1]:.1%})"
    if row is None or row.strong is None or row.named is None:
        return NOT_MEASURED
    return f"{row.named[0]:.1%} of all, {row.named[1]:.1%} of content words"


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f}" if size > 10e6 else f"{size / 1e6:.1f}"
