"""The table of finished cells: accuracy of each arm, and what the teacher adds, paired over the scored records."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.protections.measured import points
from privtune.shared.files import write_text
from research.frontier.summary import interval_of, right_of

Arms = dict[str, list[dict[str, Any]]]
# What is credited to the teacher is the first of these.
PAIRS = (("taught", "labels"), ("taught", "untaught"), ("labels", "untaught"), ("taught", "shuffled"))


def write_report(out: Path) -> None:
    """Write `teach-down.{md,json}` of all cells in `out`."""
    rows = [row for path in sorted(out.glob("teach-down-*.cells.jsonl")) for row in _rows(MeasurementFile(path).all())]
    write_text(out / "teach-down.json", json.dumps({"rows": rows}, indent=1) + "\n")
    write_text(out / "teach-down.md", _page(rows))
    print(out / "teach-down.md")


def _rows(cells: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model, task, depth, number of private records and setting of the teaching."""
    groups: dict[tuple[Any, ...], Arms] = defaultdict(lambda: defaultdict(list))
    untaught: dict[tuple[Any, ...], Arms] = defaultdict(lambda: defaultdict(list))
    for cell in cells.values():
        place = tuple(cell[name] for name in ("split", "model", "task", "cut", "private", "epochs"))
        if cell["spec"] is None:
            untaught[place][cell["arm"]].append(cell)
        else:
            groups[place, _setting(cell["spec"])][cell["arm"]].append(cell)
    return [_row(place, setting, arms | untaught[place]) for (place, setting), arms in groups.items()]


def _setting(spec: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What arms that are compared have in common: all but whether they use labels."""
    return tuple(sorted((name, value) for name, value in spec.items() if name != "label_column"))


def _row(place: Sequence[Any], setting: Sequence[tuple[str, Any]], arms: Arms) -> dict[str, Any]:
    shares = {arm: _share(cells) for arm, cells in arms.items() if cells}
    pairs = *PAIRS, *((arm, arm.partition("+")[0]) for arm in shares if "+" in arm)
    differences = {f"{one} - {other}": _gain(arms, one, other) for one, other in pairs if {one, other} <= shares.keys()}
    return {
        **dict(zip(("split", "model", "task", "cut", "private", "epochs"), place, strict=True)),
        "setting": dict(setting),
        "accuracy": {arm: interval_of(share_B) for arm, share_B in shares.items()},
        "differences": differences,
        "seeds": {arm: sorted(cell["seed"] for cell in cells) for arm, cells in arms.items() if cells},
        "seconds": {arm: [cell["seconds"] for cell in cells] for arm, cells in arms.items() if cells},
        "commands": sorted({cell["command"] for cells in arms.values() for cell in cells}),
    }


def _gain(arms: Arms, one: str, other: str) -> Any:
    """The difference over the seeds that both have."""
    seeds = {cell["seed"] for cell in arms[one]} & {cell["seed"] for cell in arms[other]}
    mine, theirs = ([cell for cell in arms[arm] if cell["seed"] in seeds] for arm in (one, other))
    return interval_of(_share(mine) - _share(theirs)) if seeds else None


def _share(cells: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """The share of seeds that had each record right."""
    share_B: NDArray[np.float64] = np.stack([right_of(cell) for cell in cells]).mean(0)
    return share_B


def _page(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# Teach-down: what the teacher adds",
        "",
        "Written by `python -m research.teach_down report` from the cells of `teach-down-SPLIT.cells.jsonl`, each of",
        "which has its own command. Accuracy in points; brackets: 95% bootstrap interval over the same records, seeds",
        "averaged first. What the teacher adds: taught minus labels, the same device with the same public text and",
        "labels and no teacher. The cloud on top: with what a cell of `research.frontier` sends, minus the same device",
        "without it.",
        "",
        "| split | model | task | cut | pieces | untaught | labels | taught | teacher adds | over untaught "
        "| cloud on top | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        setting, accuracy, differences = row["setting"], row["accuracy"], row["differences"]
        arms = [_or_none(accuracy.get(arm)) for arm in ("untaught", "labels", "taught")]
        gains = [_or_none(differences.get(name)) for name in ("taught - labels", "taught - untaught")]
        gains.append("; ".join(f"{name}: {_or_none(one)}" for name, one in differences.items() if "+" in name) or "-")
        size = f"{setting['max_pieces']:,} x {setting['epochs']}"
        cells = [row["split"], row["model"], row["task"], str(row["cut"]), size, *arms, *gains]
        lines.append(f"| {' | '.join(cells)} | {len(row['seeds'].get('taught', []))} |")
    return "\n".join(lines) + "\n"


def _or_none(interval: Any) -> str:
    return "-" if interval is None else points(interval)
