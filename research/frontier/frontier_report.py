"""Table, JSON and pictures from the finished cells of `scripts/frontier.py`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.audit.report.picture import Goal, Point, frontier

_RESAMPLES = 2000
_PARTS = {"utility": "accuracy", "attack": "attacks", "attribute": "attributes"}
Interval = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell over its seeds. Intervals are (value, low, high), 95%; None where that part has not been run."""

    cell: str
    family: str
    mechanism: str
    params: dict[str, Any]
    cut: int
    seeds: int
    attack_seeds: int
    accuracy: Interval | None
    drop: Interval | None
    oblivious: Interval | None
    adaptive: Interval | None
    content: Interval | None
    best_attack: str
    best_on_content: str
    floor: float | None
    content_floor: float | None
    attribute: Interval | None
    attribute_floor: float | None
    best_on_attribute: str
    attribute_seeds: int
    statement: str


def write_report(folder: Path, order: Iterable[str]) -> None:
    """`frontier-MODEL-SPLIT.{json,md}` and two pictures beside the folder of cells, for every model and split in it."""
    found: dict[tuple[str, str], dict[str, dict[str, list[dict[str, Any]]]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        part = next(part for part, key in _PARTS.items() if key in facts)
        found[facts["model"], facts["split"]][facts["cell"]].setdefault(part, []).append(facts)
    places = {name: place for place, name in enumerate(order)}
    for (model, split), by_cell in found.items():
        clean = [f for parts in by_cell.values() for f in parts.get("utility", []) if f["family"] == "clean"]
        rows = [
            _row(name, by_cell[name], clean) for name in sorted(by_cell, key=lambda name: places.get(name, len(places)))
        ]
        stem = folder.parent / f"frontier-{model}-{split}"
        some = next(iter(next(iter(by_cell.values())).values()))[0]
        document = {"model": model, "split": split, "sizes": some["sizes"], "rows": [asdict(row) for row in rows]}
        stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(_page(model, split, some, rows), encoding="utf-8")
        for figure, label in (("adaptive", "all words"), ("content", "content words")):
            drawn = _picture(rows, figure, label, model, split)
            stem.with_name(f"{stem.name}-{figure}.svg").write_text(drawn, encoding="utf-8")
        print(f"{stem}.md")


def _row(name: str, parts: dict[str, list[dict[str, Any]]], clean: Sequence[dict[str, Any]]) -> Row:
    trained, attacked, inferred = (parts.get(part, []) for part in _PARTS)
    some = (trained or attacked or inferred)[0]
    rights = np.stack([_right(facts) for facts in trained]) if trained else None
    best_clean = _best_clean(clean)
    oblivious = _worst(attacked, "top1", ("oblivious",))
    adaptive = _worst(attacked, "top1", ("oblivious", "adaptive"))
    content = _worst(attacked, "content_top1", ("oblivious", "adaptive"))
    attribute = _worst(inferred, "accuracy", ("oblivious", "adaptive"))
    return Row(
        cell=name,
        family=some["family"],
        mechanism=some["mechanism"],
        params=some["params"],
        cut=some["cut"],
        seeds=len(trained),
        attack_seeds=len(attacked),
        accuracy=None if rights is None else _interval(rights.mean(0)),
        drop=None if rights is None or best_clean is None else _interval(best_clean - rights.mean(0)),
        oblivious=oblivious[1],
        adaptive=adaptive[1],
        content=content[1],
        best_attack=adaptive[0],
        best_on_content=content[0],
        floor=_floor(attacked, "top1"),
        content_floor=_floor(attacked, "content_top1"),
        attribute=attribute[1],
        attribute_floor=_floor(inferred, "accuracy"),
        best_on_attribute=attribute[0],
        attribute_seeds=len(inferred),
        statement=_statement(trained),
    )


def _right(facts: dict[str, Any]) -> NDArray[np.float64]:
    return np.array([character == "1" for character in facts["right"]], dtype=np.float64)


def _best_clean(clean: Sequence[dict[str, Any]]) -> NDArray[np.float64] | None:
    """Mean over seeds of the clean cell (of any cut) that serves the task best: what an owner would give up."""
    cells: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for facts in clean:
        cells[facts["cell"]].append(_right(facts))
    means = [np.mean(rights, axis=0) for rights in cells.values()]
    return max(means, key=lambda mean: float(mean.mean()), default=None)


def _interval(share_B: NDArray[np.float64]) -> Interval:
    """Mean over records with its 95% bootstrap interval; seeds are averaged a record before."""
    rng = np.random.default_rng(0)
    drawn = share_B[rng.integers(len(share_B), size=(_RESAMPLES, len(share_B)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(share_B.mean()), float(low), float(high)


def _worst(attacked: Sequence[dict[str, Any]], figure: str, knowledge: Sequence[str]) -> tuple[str, Interval | None]:
    """The attack with the highest mean over seeds, and means of its value and interval."""
    by_attack: dict[str, list[dict[str, float]]] = defaultdict(list)
    for facts in attacked:
        for row in facts.get("attacks") or facts["attributes"]:
            if row["knowledge"] in knowledge:
                by_attack[f"{row['attack']} {row['variant']} ({row['knowledge']})"].append(row[figure])
    if not by_attack:
        return "", None
    name = max(by_attack, key=lambda attack: float(np.mean([f["value"] for f in by_attack[attack]])))
    value, low, high = (float(np.mean([f[key] for f in by_attack[name]])) for key in ("value", "low", "high"))
    return name, (value, low, high)


def _floor(attacked: Sequence[dict[str, Any]], figure: str) -> float | None:
    if not attacked:
        return None
    rows = attacked[0].get("attacks") or attacked[0]["attributes"]
    return float(rows[0][figure]["floor"])


def _statement(trained: Sequence[dict[str, Any]]) -> str:
    if not trained:
        return ""
    statement = trained[0]["statement"]
    text: str = statement["guarantee"]
    if statement.get("position_epsilon") is not None:
        text += f", {statement['position_epsilon']:.3g} nats a position"
    text += f", delta {statement['delta']:.0e}" if statement.get("delta") else ""
    return text + (f", + {statement['fitted_epsilon']:g} once" if statement.get("fitted_epsilon") else "")


def _page(model: str, split: str, some: dict[str, Any], rows: Sequence[Row]) -> str:
    sizes = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in some["sizes"].items())
    lines = [
        f"# Frontier on SST-2: {model}, {split} split",
        "",
        "Written by `python scripts/frontier.py report` from cells that `python scripts/frontier.py run` kept, each",
        f"with its own command. Sizes: {sizes}. Per cent; brackets: 95% bootstrap interval over records.",
        "Recovered: the worst attack (EIA-1, EIA-2) on all ordinary tokens, and on content words. Drop: points below",
        "the best clean cell. Floor: the commonest word guessed everywhere. Attribute: accuracy of the worst attack",
        "(AIA-1 to 3) on the sentiment, beside its floor, the majority. Seeds: of utility / inversion / attribute.",
        "",
        "| cell | cut | accuracy | drop | oblivious, all | adaptive, all | adaptive, content | floor | best attack "
        "(content) | attribute | floor | claim | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        floor = "" if row.floor is None else f"{100 * row.floor:.1f} / {100 * (row.content_floor or 0):.1f}"
        best = f"{row.best_attack} ({row.best_on_content})" if row.best_attack else ""
        majority = "" if row.attribute_floor is None else f"{100 * row.attribute_floor:.1f}"
        lines.append(
            f"| {row.cell} | {row.cut} | {_told(row.accuracy)} | {_told(row.drop)} | {_told(row.oblivious)} | "
            f"{_told(row.adaptive)} | {_told(row.content)} | {floor} | {best} | {_told(row.attribute)} | {majority} | "
            f"{row.statement} | {row.seeds} / {row.attack_seeds} / {row.attribute_seeds} |"
        )
    lines += ["", "## Settings", ""]
    lines += [f"* `{row.cell}`: {row.mechanism} `{json.dumps(row.params)}`" for row in rows]
    return "\n".join(lines) + "\n"


def _told(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    value, low, high = (100 * share for share in interval)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _picture(rows: Sequence[Row], figure: str, label: str, model: str, split: str) -> str:
    points = [
        Point(series=row.family, name=row.cell, x=getattr(row, figure), y=row.accuracy)
        for row in rows
        if getattr(row, figure) is not None and row.accuracy is not None
    ]
    clean = max((row.accuracy[0] for row in rows if row.family == "clean" and row.accuracy), default=None)
    limits = {"adaptive": (0.20, 0.10), "content": (0.10, 0.05)}[figure]
    names = ("ambition", "moonshot")
    goals = [Goal(name=n, x=x, y=clean - 0.03) for n, x in zip(names, limits, strict=True)] if clean else []
    return frontier(
        points,
        title=f"SST-2, {model}, {split}: what the worst adaptive attack recovers",
        x_label=f"{label} recovered (top-1)",
        y_label="accuracy",
        goals=goals,
    )
