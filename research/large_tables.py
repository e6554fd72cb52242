"""Neighbours and clusters of a large vocabulary: how long they take, what of the true neighbours is found.

    python -m research.large_tables --model FOLDER --rows 255579

The token table of a model, repeated with noise of 0.7 of a row's spread until it has that many rows: as spread as real
words, and as many as asked for. Seconds are of the processor, so that a busy machine counts little.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from privtune.device.noise.tables.clustering import make_clusters
from privtune.device.noise.tables.graph import centred, nearest, recall
from privtune.shared.modeling.load import load_task_model

T = TypeVar("T")


def timed(what: str, compute: Callable[[], T], found: dict[str, float]) -> T:
    """compute(), with its processor seconds noted."""
    began = time.process_time()
    value = compute()
    found[f"{what}_s"] = round(time.process_time() - began, 1)
    print(what, found[f"{what}_s"], flush=True)
    return value


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m research.large_tables", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=255_579)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table_VD = load_task_model(arguments.model, "causal-lm").get_input_embeddings().weight.detach()
    generator = torch.Generator().manual_seed(0)
    times = -(-arguments.rows // len(table_VD))
    rows_UD = table_VD.repeat(times, 1)[: arguments.rows]
    noise_UD = torch.randn(rows_UD.shape, generator=generator) * (0.7 * table_VD.std())
    noise_UD[: len(table_VD)] = 0
    unit_UD = centred(rows_UD.add_(noise_UD))
    del rows_UD, noise_UD
    found: dict[str, float] = {"rows": len(unit_UD), "width": unit_UD.shape[1], "threads": arguments.threads}
    near_UK = timed("neighbours", lambda: nearest(unit_UD, arguments.neighbours), found)
    found["recall"] = round(timed("check", lambda: recall(unit_UD, near_UK), found), 4)
    frequency_U = np.ones(len(unit_UD))
    timed(
        "clusters",
        lambda: make_clusters(unit_UD, frequency_U, size=64, max_share=1.0, frequency_weight=0.0),
        found,
    )
    found["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), 2)
    print(json.dumps(found))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
