"""Tables and pictures of the finished cells of every model and split."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.audit.report.picture import Goal, Point, frontier
from privtune.shared.files import write_text

_RESAMPLES = 2000
_PARTS = {"utility": "accuracy", "attack": "attacks", "attribute": "attributes", "strong": "strong"}
Interval = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class FrontierRow:
    """A cell over its seeds. Intervals are (value, low, high), 95%; None if that part has not been run.

    strong, strong_content: the worst attack, that of the reader with the most text included; strong_texts: how many.
    """

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
    strong: Interval | None
    strong_content: Interval | None
    strong_texts: int
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
    """Write `frontier-MODEL-SPLIT.{json,md}` and two pictures beside each file of cells in the folder.

    order: names of cells, as the table lists them.
    """
    places = {name: place for place, name in enumerate(order)}
    for path in sorted(folder.glob("frontier-*.cells.jsonl")):
        by_cell: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
        for facts in MeasurementFile(path).all().values():
            part = next(part for part, key in _PARTS.items() if key in facts)
            by_cell[facts["cell"]].setdefault(part, []).append(facts)
        clean = [f for parts in by_cell.values() for f in parts.get("utility", []) if f["family"] == "clean"]
        rows = [
            _row(name, by_cell[name], clean) for name in sorted(by_cell, key=lambda name: places.get(name, len(places)))
        ]
        some = next(iter(next(iter(by_cell.values())).values()))[0]
        model, split, stem = some["model"], some["split"], path.name.removesuffix(".cells.jsonl")
        document = {"model": model, "split": split, "sizes": some["sizes"], "rows": [asdict(row) for row in rows]}
        write_text(folder / f"{stem}.json", json.dumps(document, indent=1) + "\n")
        write_text(folder / f"{stem}.md", _page(model, split, some, rows))
        for figure, label in (("adaptive", "all words"), ("content", "content words")):
            write_text(folder / f"{stem}-{figure}.svg", _picture(rows, figure, label, model, split))
        print(folder / f"{stem}.md")


def _row(name: str, parts: dict[str, list[dict[str, Any]]], clean: Sequence[dict[str, Any]]) -> FrontierRow:
    trained, attacked, inferred, read = (parts.get(part, []) for part in _PARTS)
    some = (trained or attacked or inferred or read)[0]
    most = max((facts["texts"] for facts in read), default=0)
    read = [facts for facts in read if facts["texts"] == most]
    rights = np.stack([right_of(facts) for facts in trained]) if trained else None
    best_clean = _best_clean(clean)
    oblivious = _worst(attacked, "top1", ("oblivious",))
    adaptive = _worst(attacked, "top1", ("oblivious", "adaptive"))
    content = _worst(attacked, "content_top1", ("oblivious", "adaptive"))
    attribute = _worst(inferred, "accuracy", ("oblivious", "adaptive"))
    return FrontierRow(
        cell=name,
        family=some["family"],
        mechanism=some["mechanism"],
        params=some["params"],
        cut=some["cut"],
        seeds=len(trained),
        attack_seeds=len(attacked),
        accuracy=None if rights is None else interval_of(rights.mean(0)),
        drop=None if rights is None or best_clean is None else interval_of(best_clean - rights.mean(0)),
        oblivious=oblivious[1],
        adaptive=adaptive[1],
        content=content[1],
        strong=_stronger(read, "top1", adaptive[1]),
        strong_content=_stronger(read, "content_top1", content[1]),
        strong_texts=most,
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


def right_of(facts: dict[str, Any]) -> NDArray[np.float64]:
    """Which held-out records a cell had right: 1 or 0 each."""
    return np.array([character == "1" for character in facts["right"]], dtype=np.float64)


def _best_clean(clean: Sequence[dict[str, Any]]) -> NDArray[np.float64] | None:
    """Mean over seeds of the best clean cell of any cut: what an owner would give up."""
    cells: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for facts in clean:
        cells[facts["cell"]].append(right_of(facts))
    means = [np.mean(rights, axis=0) for rights in cells.values()]
    return max(means, key=lambda mean: float(mean.mean()), default=None)


def interval_of(share_B: NDArray[np.float64]) -> Interval:
    """Mean over records, with its 95% bootstrap interval; seeds are averaged first."""
    rng = np.random.default_rng(0)
    drawn = share_B[rng.integers(len(share_B), size=(_RESAMPLES, len(share_B)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(share_B.mean()), float(low), float(high)


def _worst(attacked: Sequence[dict[str, Any]], figure: str, knowledge: Sequence[str]) -> tuple[str, Interval | None]:
    """The attack with the highest mean over seeds, and means of its value and interval."""
    by_attack: dict[str, list[dict[str, float]]] = defaultdict(list)
    for facts in attacked:
        for row in _attack_rows(facts):
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
    return float(_attack_rows(attacked[0])[0][figure]["floor"])


def _attack_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return next(facts[key] for key in ("attacks", "attributes", "strong") if key in facts)


def _stronger(read: Sequence[dict[str, Any]], figure: str, suite: Interval | None) -> Interval | None:
    """The reader's figure or the suite's, whichever is worse for the owner; None if the reader has not been run."""
    reader = _worst(read, figure, ("adaptive",))[1]
    return None if reader is None else max(reader, suite or reader)


def _statement(trained: Sequence[dict[str, Any]]) -> str:
    if not trained:
        return ""
    statement = trained[0]["statement"]
    text: str = statement["guarantee"]
    if statement.get("position_epsilon") is not None:
        text += f", {statement['position_epsilon']:.3g} nats per position"
    text += f", delta {statement['delta']:.0e}" if statement.get("delta") else ""
    return text + (f", + {statement['fitted_epsilon']:g} once" if statement.get("fitted_epsilon") else "")


def _page(model: str, split: str, some: dict[str, Any], rows: Sequence[FrontierRow]) -> str:
    sizes = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in some["sizes"].items())
    lines = [
        f"# Frontier on SST-2: {model}, {split} split",
        "",
        "Written by `python -m research.frontier report` from cells that `python -m research.frontier run` kept, each",
        f"with its own command. Sizes: {sizes}. Per cent; brackets: 95% bootstrap interval over records.",
        "Recovered: the worst attack (EIA-1, EIA-2) on all ordinary tokens, and on content words. Drop: points below",
        "the best clean cell. Floor: the most common word guessed everywhere. Attribute: accuracy of the worst attack",
        "(AIA-1 to 3) on the sentiment, beside its floor, the majority. Seeds: of utility / inversion / attribute.",
        "Strong: the worst attack where EIA-2c, trained on so many texts, is among them; all / content words.",
        "",
        "| cell | cut | accuracy | drop | oblivious, all | adaptive, all | adaptive, content | strong | floor | best "
        "attack (content) | attribute | floor | claim | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        floor = "" if row.floor is None else f"{100 * row.floor:.1f} / {100 * (row.content_floor or 0):.1f}"
        best = f"{row.best_attack} ({row.best_on_content})" if row.best_attack else ""
        majority = "" if row.attribute_floor is None else f"{100 * row.attribute_floor:.1f}"
        cells = [
            *(row.cell, str(row.cut), _percent(row.accuracy), _percent(row.drop)),
            *(_percent(row.oblivious), _percent(row.adaptive), _percent(row.content), _strong(row), floor, best),
            *(_percent(row.attribute), majority, row.statement),
            f"{row.seeds} / {row.attack_seeds} / {row.attribute_seeds}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Settings", ""]
    for row in rows:
        replaced = ", in a text of surrogates" if row.family == "surrogates" else ""
        lines.append(f"* `{row.cell}`: {row.mechanism} `{json.dumps(row.params)}`{replaced}")
    return "\n".join(lines) + "\n"


def _strong(row: FrontierRow) -> str:
    if row.strong is None:
        return "-"
    return f"{_percent(row.strong)} / {_percent(row.strong_content)} ({row.strong_texts:,})"


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    value, low, high = (100 * share for share in interval)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _picture(rows: Sequence[FrontierRow], figure: str, label: str, model: str, split: str) -> str:
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
