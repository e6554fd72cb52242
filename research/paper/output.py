"""Writes what the finished cells say: tables as JSON and markdown, and pictures of the frontier."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privtune.device.audit.report.picture import Level, Point, frontier
from privtune.shared.errors import StorageFull
from privtune.shared.files import write_text
from research.paper.cell import PaperCell
from research.paper.datasets import DataSet
from research.paper.markdown import head, picture_name, section, sets, unfinished
from research.paper.rows import INVERSIONS, PICTURED, PaperRow, rows_of


def write_results(
    folder: Path, scale: str, done: Sequence[tuple[PaperCell, dict[str, Any]]], missing: Sequence[PaperCell]
) -> Path:
    """Write `folder`.md, `folder`.json and the pictures in `folder`. Returns the page's path.

    missing: planned cells that have not been run. Raises StorageFull.
    """
    tables = {data: rows_of([pair for pair in done if pair[0].data is data]) for data in sets(c for c, _ in done)}
    names = {data: next(cell.model for cell, _ in done if cell.data is data) for data in tables}
    document = {
        "scale": scale,
        "sizes": {cell.data.name: cell.amount.to_dict(cell.data.task) for cell, _ in done},
        "data": {
            data.name: {"model": names[data], "attribute": data.attribute, "rows": [row.to_dict() for row in rows]}
            for data, rows in tables.items()
        },
        "not_run": [cell.key for cell in missing],
    }
    page = folder.with_name(folder.name + ".md")
    lines = head(scale, [cell for cell, _ in done])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for data, rows in tables.items():
            lines += ["", f"## {data.name} ({names[data]})", "", *section(data, rows, folder.name)]
            for figure, what in PICTURED.items():
                drawn = _picture(data, names[data], rows, figure, what)
                write_text(folder / picture_name(data, figure), drawn)
        lines += ["", *unfinished(missing)]
        write_text(folder.with_name(folder.name + ".json"), json.dumps(document, indent=1) + "\n")
        write_text(page, "\n".join(lines) + "\n")
    except OSError as error:
        raise StorageFull(f"{page} can't be written: {error.strerror or error}") from error
    return page


def _picture(data: DataSet, model: str, rows: Sequence[PaperRow], figure: str, what: str) -> str:
    generation = data.task == "causal-lm"
    points = []
    majority = rows[0].utility.get("majority")
    for row in rows:
        worst, utility = row.worst(INVERSIONS, figure), row.utility
        if worst is None:
            continue
        value = utility["token_accuracy"] if generation else utility["accuracy"]
        x = (worst[2]["value"], worst[2]["low"], worst[2]["high"])
        points.append(
            Point(series=row.name, name=row.name, x=x, y=(value, utility.get("low", value), utility.get("high", value)))
        )
    return frontier(
        points,
        title=f"{data.name}, {model}: what the worst inversion recovers",
        x_label=f"{what} recovered (top-1)",
        y_label="next tokens predicted" if generation else "accuracy",
        level=None if majority is None else Level(name="the most common class", y=majority),
        join=False,
    )
