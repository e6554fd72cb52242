"""The cloud gain: accuracy of the split minus that of the same device alone, on the same test records.

    python -m research.cloud_gain run --data ../shared/data --split test --cells names-cut-1 --seeds 0 1 2
    python -m research.cloud_gain report                                    tables, and the file of the product

`run` measures a cell of `research.frontier` and the cell of its device alone: the blocks below the cut and the last
one, trained on clean vectors of the same private records, without a cloud (`ALONE`; of the two ways to train them the
one that dev chose). Both keep which record was right, so that the gain is paired: the mean over seeds of each record's
right answers, minus that of the device alone, resampled over records. Beside it stands the gain over a whole small
model (MiniLM) that a device trains by itself.

`report` writes `cloud-gain.{md,json}` and `measured.json` of `privtune.device.protections`, from the cells of all
models, the recovery of `frontier-MODEL-test.json`, the attacks of `surrogates-attacker.json`, the traffic of the jobs
of `sst2.json` and what teachers added, from `teach-down.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.protections.measured import Interval, JobTraffic, MeasuredRow, TaughtRow, points
from privtune.device.protections.table import markdown
from privtune.shared.files import write_text
from privtune.shared.job_spec import SurrogateSpec
from research.frontier.__main__ import main as frontier
from research.frontier.cells import FrontierCell, cells
from research.frontier.summary import interval_of, right_of

PRODUCT = Path("device/privtune/device/protections/measured.json")
PAGES = (Path("README.md"), Path("docs/protections.md"))
_TABLE = re.compile(r"^\| protection \| .*\n(?:\|.*\n)+", re.MULTILINE)
ALONE = "alone-cut-{cut}-tuned"
SMALL = ("minilm", "clean")  # the whole small model, trained without a cloud
NAMES = {"minilm": "MiniLM", "mpnet": "MPNet"}
TASKS = {"sst2": "SST-2", "ag_news": "AG News", "trec": "TREC"}
# Which job of docs/results/sst2.json has the settings of a cell.
JOBS = {
    "clean": "plain",
    "names-cut-1": "names",
    "codes-32-cut-2-tail-1-tuned": "codes",
    "codes-8-cut-3-hide-flip-1": "all",
}
Rights = dict[tuple[str, str], NDArray[np.float64]]  # (model, cell) -> share of seeds that were right, per record


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure cells with their devices alone, or report."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m research.cloud_gain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--cells", nargs="+", default=[], help="cells of research.frontier")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--product", type=Path, default=PRODUCT, help="report: the file of the product")
    options, others = parser.parse_known_args(given)
    if options.action == "report":
        report(options.results, options.product, PAGES if options.product == PRODUCT else ())
        return
    known = cells()
    alone = [ALONE.format(cut=known[name].cut) for name in options.cells if name in known]
    both = dict.fromkeys([*alone, *options.cells])
    frontier(["run", "--parts", "utility", "--out", str(options.results), *others, "--cells", *both])


def report(results: Path, product: Path, pages: Sequence[Path] = ()) -> None:
    """Write the tables and the product's file, and put the table of protections into the pages that hold it."""
    rows = measured_rows(results)
    document = {
        "command": "python -m research.cloud_gain report",
        "rows": [row.model_dump(mode="json") for row in rows],
        "teachings": [row.model_dump(mode="json") for row in taught_rows(results)],
    }
    text = json.dumps(document, indent=1) + "\n"
    write_text(product, text)
    write_text(results / "cloud-gain.json", text)
    write_text(results / "cloud-gain.md", _page(rows))
    print(results / "cloud-gain.md")
    for page in pages:
        before = page.read_text(encoding="utf-8")
        write_text(page, _TABLE.sub(lambda _: f"{markdown()}\n", before))
        print(page)


def measured_rows(results: Path) -> list[MeasuredRow]:
    """A row for each cell of the test split that has something to be compared with: a device alone, a small model."""
    facts: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    reported: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(results.glob("frontier-*-test.cells.jsonl")):
        for one in MeasurementFile(path).all().values():
            if "right" in one:
                facts[one["model"], one["cell"]].append(one)
        document = json.loads(path.with_name(path.name.replace(".cells.jsonl", ".json")).read_text(encoding="utf-8"))
        reported |= {(document["model"], row["cell"]): row for row in document["rows"]}
    rights = {key: np.stack([right_of(one) for one in each]).mean(0) for key, each in facts.items()}
    known = cells()
    jobs = json.loads((results / "sst2.json").read_text(encoding="utf-8"))["runs"]
    attacker = json.loads((results / "surrogates-attacker.json").read_text(encoding="utf-8"))
    every = next(row for row in attacker["attacks"]["tuned"] if row["kind"] == "all")
    named = (max(every["likelihood"], every["with_prior"]), every["frequent"])
    return [
        _row(key, known[key[1]], facts[key], rights, reported, jobs, named)
        for key in facts
        if not known[key[1]].alone and (key[0] != SMALL[0] or (key[0], ALONE.format(cut=known[key[1]].cut)) in facts)
    ]


def taught_rows(results: Path) -> list[TaughtRow]:
    """A row for each teaching that was measured on the test split against the same text and labels without it."""
    return [
        TaughtRow(
            model=NAMES.get(row["model"], row["model"]),
            data=TASKS[row["task"]],
            cut=row["cut"],
            pieces=row["setting"]["max_pieces"],
            adds=row["differences"]["taught - labels"],
            over_untaught=row["differences"]["taught - untaught"],
            seeds=len(row["seeds"]["taught"]),
            sources=("teach-down.json",),
        )
        for row in json.loads((results / "teach-down.json").read_text(encoding="utf-8"))["rows"]
        if row["split"] == "test" and {"taught - labels", "taught - untaught"} <= row["differences"].keys()
    ]


def _row(
    key: tuple[str, str],
    setting: FrontierCell,
    seeds: list[dict[str, Any]],
    rights: Rights,
    reported: dict[tuple[str, str], dict[str, Any]],
    jobs: dict[str, dict[str, Any]],
    named: tuple[float, float],
) -> MeasuredRow:
    model, cell = key
    share_B, alone_B = rights[key], rights.get((model, ALONE.format(cut=setting.cut)))
    job = jobs.get(JOBS.get(cell, "")) if model == "minilm" else None
    coverage = seeds[0].get("coverage")
    attacked = _attacked(key, reported)
    return MeasuredRow(
        model=NAMES.get(model, model),
        data="SST-2",
        cut=setting.cut,
        tail=setting.tail,
        skip=setting.depth.skip,
        mechanism=setting.mechanism,
        params=setting.params,
        surrogates=setting.surrogates,
        accuracy=interval_of(share_B),
        drop=reported[key]["drop"],
        alone=None if alone_B is None else interval_of(alone_B),
        gain=None if alone_B is None else interval_of(share_B - alone_B),
        gain_small=interval_of(share_B - rights[SMALL]) if SMALL in rights and key != SMALL else None,
        oblivious=attacked["oblivious"],
        informed=attacked["adaptive"],
        content=attacked["content"],
        **_strong(key, reported),
        clear=None if coverage is None else coverage["clear"] / coverage["content"],
        replaced=named if setting.surrogates == SurrogateSpec().rank else None,
        traffic=None if job is None else JobTraffic(**{name: job[name] for name in JobTraffic.model_fields}),
        cell=cell,
        seeds=len(seeds),
        sources=(f"frontier-{model}-test.cells.jsonl", *(("sst2.json",) if job else ())),
    )


def _attacked(key: tuple[str, str], reported: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """The row with the recovery of a cell's releases."""
    same = [row for row in _same_releases(key, reported) if row["adaptive"] is not None]
    return max(same, key=lambda row: row["attack_seeds"], default=reported[key])


def _strong(key: tuple[str, str], reported: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """What a strong attacker reads of a cell's releases; nothing if the reader has not been run on them."""
    found = [row for row in _same_releases(key, reported) if row["strong"] is not None]
    best = max(found, key=lambda row: row["strong_texts"], default=None)
    if best is None:
        return {}
    attacked = _attacked(key, reported)
    return {
        "strong": max(best["strong"], attacked["adaptive"] or best["strong"]),
        "strong_content": max(best["strong_content"], attacked["content"] or best["strong_content"]),
        "strong_texts": best["strong_texts"],
    }


def _same_releases(key: tuple[str, str], reported: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of what the cell releases: it is the same whatever the tail and the skip."""
    own = reported[key]
    releases = ("mechanism", "params", "cut")
    return [
        row
        for (model, cell), row in reported.items()
        if model == key[0] and [row[name] for name in releases] == [own[name] for name in releases]
        if cells()[cell].surrogates == cells()[key[1]].surrogates
    ]


def _page(rows: Sequence[MeasuredRow]) -> str:
    lines = [
        "# Cloud gain on SST-2, test split",
        "",
        "Written by `python -m research.cloud_gain report` from the cells of `frontier-MODEL-test.cells.jsonl`, each",
        "of which has its own command. Points of accuracy; brackets: 95% bootstrap interval over the same records,",
        "seeds averaged first. Gain: over the same device alone, its blocks below the cut and the last one. Over",
        "MiniLM: over the whole small model, trained on the device without a cloud. Drop: below the whole model on",
        "clean vectors. A negative gain: the cloud's work does not make up for what the mechanism takes away.",
        "",
        "| model | cell | cut | tail | accuracy | alone | gain | over MiniLM | drop | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.model, row.cell)):
        figures = [_or_none(one) for one in (row.accuracy, row.alone, row.gain, row.gain_small, row.drop)]
        cells = [row.model, row.cell, str(row.cut), str(row.tail), *figures, str(row.seeds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _or_none(interval: Interval | None) -> str:
    return "-" if interval is None else points(interval)


if __name__ == "__main__":
    main()
