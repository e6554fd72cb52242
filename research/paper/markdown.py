"""The tables as a markdown page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from research.paper.cell import PaperCell
from research.paper.datasets import DataSet
from research.paper.rows import ATTRIBUTES, INVERSIONS, PICTURED, Figure, PaperRow

GRADIENTS = "GIA"
_KNOWLEDGE = ("oblivious", "adaptive")
_CLASSES = ("accuracy", "macro-F1", "drop")
_LANGUAGE = ("perplexity", "factor", "token accuracy", "ROUGE-L", "BLEU")
_HOW = """Per cent unless said otherwise; brackets: 95% bootstrap interval over records, averaged over seeds.

* **EIA** (inversion): ordinary tokens recovered, top-1, by the best variant of each attack: oblivious / adaptive.
  **Worst**: the best attack of a row, in bold. It is over both attackers, since one who knows the mechanism may also
  ignore it. Content: not among the 100 most frequent tokens of the public text.
* **AIA** (attribute): points above the majority class of the attacked records: oblivious / adaptive. **Worst**: the
  accuracy of the best attack. The best of six on few records looks better than it is: an interval that reaches the
  majority's share shows nothing.
* **Drop**: points of accuracy below `none`. **Factor**: perplexity relative to `none`.
* **ROUGE-L, BLEU**: greedy answers to forms of the test set against all texts that were written for the same form
  (ROUGE: the closest one counts). The answer's own rows are released with the mechanism too, as in a job; there is no
  figure if a mechanism can't release a growing text.
* Utility: all weights above the cut trained on releases, each record released once; `none` sends clean vectors.
* **With a tail** (`codes-tail`) the device trains the last block and, in a skip, a copy of its own blocks on clean
  vectors (`--tail 1 --skip tuned`), while the cloud's blocks stay frozen: no gradient leaves. The accuracy of the same
  blocks without any cloud is below the tables.
* Settings are the defaults or named below; none was chosen on a test split. With few records, accuracy moves by points
  from run to run: see the intervals.
* **Claim**: what the mechanism's own statement guarantees: epsilon per position, and epsilon spent once on counts of
  the owner's records.
"""

_GRADIENTS = (
    "the share of all ordinary tokens that the gradients of training name: every predicted one, whatever the "
    "mechanism. The other columns, the worst included, are for the releases alone, as in a job without gradients; "
    "if gradients are sent, the larger of the two counts."
)


def head(scale: str, cells: Sequence[PaperCell]) -> list[str]:
    """Title, how to read the tables, and the sizes."""
    lines = [
        f"# The paper's evaluation, scale `{scale}`",
        "",
        f"`python -m research.paper --scale {scale} --data DATA`; cells that have not been run are listed at the end.",
        "",
        *_HOW.splitlines(),
        "",
    ]
    for sizes in dict.fromkeys(cell.amount for cell in cells):
        names = ", ".join(data.name for data in sets(cell for cell in cells if cell.amount == sizes))
        suite = sizes.suite
        lines.append(
            f"* {names}: at most {sizes.train} training and {sizes.test} test records, "
            f"{_epochs(sizes.training.epochs)}; attacks built on at most {suite.public} public records in "
            f"{_epochs(suite.sequence.epochs)}, run on {suite.attacked} test records (inversion: {suite.inverted}, "
            f"EIA-3: {suite.optimise_records})" + (f", {sizes.answers} answers." if sizes.answers else ".")
        )
    return lines


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}"


def section(data: DataSet, rows: Sequence[PaperRow], folder: str) -> list[str]:
    """The tables of one data set."""
    clean = next((row for row in rows if row.name == "none"), None)
    generation = data.task == "causal-lm"
    utility = _LANGUAGE if generation else _CLASSES
    columns = ["mechanism", "cut", *utility, *INVERSIONS, "worst, all", "worst, content"]
    inversions = []
    for row in rows:
        cells = [row.name, str(row.cut), *_utility(row, clean), *(_inversion(row, attack) for attack in INVERSIONS)]
        cells += [_with_interval(row.worst(INVERSIONS, figure)) for figure in ("top1", "content_top1")]
        inversions.append(cells + ([_percent(row.figures.get((GRADIENTS, "oblivious", "top1")))] if generation else []))
    lines = [data.note, "", _floors(rows), ""]
    lines += _table([*columns, GRADIENTS] if generation else columns, inversions)
    if generation:
        lines += ["", f"{GRADIENTS}: {_GRADIENTS}"]
    lines += ["", f"The attribute is {data.attribute}.", ""]
    lines += _table(
        ["mechanism", *ATTRIBUTES, "worst", "claim", "seeds"],
        [
            [row.name, *(_above(row, attack) for attack in ATTRIBUTES), _attribute(row), row.claim, str(row.seeds)]
            for row in rows
        ],
    )
    named = [f"`{row.name}`: `{json.dumps(row.params)}`" for row in rows if row.params]
    lines += ["", "Settings: " + ("; ".join(named) or "defaults") + "; all others at the registry's defaults.", ""]
    lines += _seeds(rows)
    for row in rows:
        if "alone" in row.utility:
            lines += [f"Without a cloud the device of `{row.name}` reaches {100 * row.utility['alone']:.1f}.", ""]
    lines += [f"![{data.name}, {what}]({folder}/{picture_name(data, figure)})" for figure, what in PICTURED.items()]
    return lines


def _seeds(rows: Sequence[PaperRow]) -> list[str]:
    """How far seeds differ; nothing for a single one."""
    if all(row.seeds == 1 for row in rows):
        return []
    name = next(name for name in ("perplexity", "accuracy") if name in rows[0].by_seed[0])

    def values(row: PaperRow, figure: str) -> str:
        return ", ".join((_round if figure == "perplexity" else _share)(one[figure]) for one in row.by_seed)

    figures = {name: name, "top1": "worst, all", "content_top1": "worst, content"}
    return [
        "Seed by seed (each with its own attacked records, order of training and draws):",
        "",
        *_table(
            ["mechanism", *figures.values()], [[row.name, *(values(row, figure) for figure in figures)] for row in rows]
        ),
        "",
    ]


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]


def _floors(rows: Sequence[PaperRow]) -> str:
    """The floors of the first row: all rows have the same attacked records, seed by seed."""
    floors = []
    for attacks, figure, what in (
        (INVERSIONS, "top1", "all tokens"),
        (INVERSIONS, "content_top1", "content words"),
        (ATTRIBUTES, "accuracy", "the attribute (majority)"),
    ):
        found = rows[0].worst(attacks, figure)
        if found is None:
            continue
        floors.append(f"{what} {100 * found[2]['floor']:.1f}")
        if found[2].get("language_floor") is not None:
            floors[-1] += f" (by a language model that knows only the lengths: {100 * found[2]['language_floor']:.1f})"
    majority = rows[0].utility.get("majority")
    if majority is not None:
        floors.append(f"the task (majority) {100 * majority:.1f}")
    return "Floors: " + ", ".join(floors) + "."


def _utility(row: PaperRow, clean: PaperRow | None) -> list[str]:
    utility = row.utility
    if "perplexity" in utility:
        factor = "-" if clean is None else _round(utility["perplexity"] / clean.utility["perplexity"])
        near = [_share(utility["rouge_l"]), f"{utility['bleu']:.1f}"] if "bleu" in utility else ["-", "-"]
        return [_round(utility["perplexity"]), factor, _share(utility["token_accuracy"]), *near]
    value = f"{100 * utility['accuracy']:.1f} [{100 * utility['low']:.1f}, {100 * utility['high']:.1f}]"
    drop = "-" if clean is None else f"{100 * (clean.utility['accuracy'] - utility['accuracy']):.1f}"
    return [value, f"{100 * utility['macro_f1']:.1f}", drop]


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _inversion(row: PaperRow, attack: str) -> str:
    """Oblivious / adaptive; the row's worst in bold."""
    worst = row.worst(INVERSIONS, "top1")
    cells = []
    for knowledge in _KNOWLEDGE:
        text = _percent(row.figures.get((attack, knowledge, "top1")))
        cells.append(f"**{text}**" if worst is not None and worst[:2] == (attack, knowledge) else text)
    return " / ".join(cells)


def _above(row: PaperRow, attack: str) -> str:
    cells = []
    for knowledge in _KNOWLEDGE:
        found = row.figures.get((attack, knowledge, "accuracy"))
        cells.append("-" if found is None else f"{100 * (found['value'] - found['floor']):+.1f}")
    return " / ".join(cells)


def _attribute(row: PaperRow) -> str:
    """Accuracy of the best attack with its interval."""
    return _with_interval(row.worst(ATTRIBUTES, "accuracy"))


def _percent(figure: Figure | None) -> str:
    return "-" if figure is None else _share(figure["value"])


def _with_interval(worst: tuple[str, str, Figure] | None) -> str:
    if worst is None:
        return "-"
    figure = worst[2]
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def unfinished(missing: Sequence[PaperCell]) -> list[str]:
    """What is planned at this scale and has not been run."""
    if not missing:
        return ["All cells of this scale have been run."]
    lines = ["## Not run", "", "Planned at this scale and not run; the same command resumes with them:", ""]
    for data, seed in dict.fromkeys((cell.data.name, cell.seed) for cell in missing):
        mine = [cell.setting.name for cell in missing if (cell.data.name, cell.seed) == (data, seed)]
        lines.append(f"* {data}, seed {seed}: {', '.join(mine)}")
    return lines


def sets(cells: Iterable[PaperCell]) -> list[DataSet]:
    """The data sets of the cells, each once, in order."""
    return list({cell.data.name: cell.data for cell in cells}.values())


def picture_name(data: DataSet, figure: str) -> str:
    """The file of a picture."""
    return f"{data.name}-{figure.removesuffix('top1').rstrip('_') or 'all'}.svg"
