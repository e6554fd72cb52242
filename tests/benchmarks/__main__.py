"""`make bench`: what the split costs, as ratios to something real in the same run. Writes bench.json and bench.md.

Each figure runs the two things that it compares in turn (A B A B ...) and takes the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import message_path, noise_against_bottom, split_against_plain
from tests.benchmarks.generation import writing

FIGURES: dict[str, Callable[[int, Path], list[dict[str, Any]]]] = {
    "training": split_against_plain,
    "noise": noise_against_bottom,
    "messages": message_path,
    "writing": writing,
}


def main() -> None:
    """Run the figures that were asked for and write one JSON and one table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--only", choices=FIGURES, action="append", help="one figure; may be repeated")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs per figure")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only or FIGURES:
            print(f"-- {name}", flush=True)
            rows += FIGURES[name](arguments.repeats, Path(scratch))
    for row in rows:
        row["ratio"] = statistics.median(row["ratios"])
    write(rows, arguments.repeats, arguments.out)


def write(rows: list[dict[str, Any]], repeats: int, out: Path) -> None:
    """bench.json with every pair, bench.md with the medians."""
    out.mkdir(parents=True, exist_ok=True)
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "grpcio": version("grpcio"),
        "repeats": repeats,
    }
    (out / "bench.json").write_text(json.dumps({"machine": machine, "figures": rows}, indent=1) + "\n")
    lines = [
        f"Printed by `make bench` ({repeats} pairs a figure) on {machine['cores']} cores, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, grpcio {machine['grpcio']}.",
        "",
        "| figure | compared with | median ratio | lowest-highest | target | absolute |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        span = f"{min(row['ratios']):.2f}-{max(row['ratios']):.2f}"
        lines.append(
            f"| {row['figure']} | {row['against']} | {row['ratio']:.3f} | {span} "
            f"| {row['target']} | {row['absolute']} |"
        )
    table = "\n".join(lines) + "\n"
    (out / "bench.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
