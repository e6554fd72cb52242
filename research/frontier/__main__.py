"""The frontier of privacy and utility on SST-2: every mechanism, both attackers, the real encoder.

    python -m research.frontier run --data ../shared/data --split test         all cells
    python -m research.frontier run --data ../shared/data --split dev --cells graded-8 dchi-3 --seeds 0
    python -m research.frontier report                                    tables and pictures of the finished cells

A cell is one setting of one mechanism. Utility: the model above the cut, trained on the releases of the training
split (every record released once), scored on the releases of the split. Attack: EIA-1 (clean prototypes; Bayes with
unigram and language-model prior) and EIA-2 (token-wise and sequence), oblivious and adaptive, built on public
sentences of the same kind and run on releases of the split. Attribute: AIA-1, 2 and 3 on the sentiment, built on
public sentences with their sentiment, run on releases of the whole split. Strong: EIA-2c, trained on ever more public
text (`research.frontier.strong`). Settings were chosen on dev; test is what is reported. An interrupted run resumes:
finished cells are lines of OUT/frontier-MODEL-SPLIT.cells.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

PARTS = ("utility", "attack", "attribute", "strong")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run cells, or report on the finished ones."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    from research.frontier.cells import cells

    known = cells()
    if options.action == "report":
        from research.frontier.summary import write_report

        write_report(options.out, known)
        return
    unknown = [name for name in options.cells or () if name not in known]
    if unknown:
        sys.exit(f"no such cell: {', '.join(unknown)}; there are: {', '.join(known)}")
    import torch

    from research.frontier.measure import Frontier

    torch.set_num_threads(options.threads)
    frontier = Frontier(options, ["python", "-m", "research.frontier", *given])
    for seed in options.seeds:
        for name in options.cells or known:
            for part in options.parts:
                for chosen in [f"strong-{texts}" for texts in options.texts] if part == "strong" else [part]:
                    frontier.measure(name, known[name], seed, chosen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m research.frontier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("action", choices=("run", "report"))
    add("--data", type=Path, default=Path("../shared/data"), help="folder with sst2/ and rotten_tomatoes/")
    add("--out", type=Path, default=Path("docs/results"), help="folder of cells, tables and pictures")
    add("--work", type=Path, default=Path("frontier-work"), help="folder for tables and noised counts of mechanisms")
    add("--model", default="minilm", help="minilm (the demo's package), or a model folder, whose last part names it")
    add("--split", choices=("dev", "test"), default="dev", help="the split that is scored and attacked")
    add("--cells", nargs="*", help="names; default: all")
    add("--seeds", nargs="*", type=int, default=[0])
    add("--parts", nargs="*", choices=PARTS, default=["utility", "attack"])
    add("--train", type=int, default=3500, help="training sentences")
    add("--public", type=int, default=3000, help="the attacker's sentences")
    add("--attacked", type=int, default=200, help="attacked sentences")
    add("--texts", nargs="*", type=int, default=[3000, 30_000], help="strong: texts that the reader is trained on")
    add("--reader", choices=("minilm", "own"), default="minilm", help="strong: the reader's encoder")
    add("--epochs", type=int, default=2)
    add("--attack-epochs", type=int, default=2)
    add("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of training")
    add("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()
