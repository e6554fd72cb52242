"""Finished cells as the paper shows them: a table a data set (JSON and markdown), and pictures of the frontier."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from privtune.device.audit.report.picture import Level, Point, frontier
from privtune.shared.errors import StorageFull
from research.paper.cells import Cell
from research.paper.datasets import DataSet

Figure = dict[str, Any]  # value, low, high, floor; None for an interval that is not known
INVERSIONS, ATTRIBUTES = ("EIA-1", "EIA-2", "EIA-3"), ("AIA-1", "AIA-2", "AIA-3")
GRADIENTS = "GIA"
_KNOWLEDGE = ("oblivious", "adaptive")
_CLASSES = ("accuracy", "macro-F1", "drop")
_LANGUAGE = ("perplexity", "factor", "token accuracy", "ROUGE-L", "BLEU")
_PICTURES = {"top1": "all words", "content_top1": "content words"}
_HOW = """Per cent unless said otherwise; brackets: 95% bootstrap interval over records, averaged over seeds.

* **EIA** (inversion): ordinary tokens recovered, top-1, by the best variant of each attack: oblivious / adaptive.
  **Worst**: the best attack of a row, bold in it; who knows the mechanism may also ignore it, so it is over both
  attackers. Content: not among the 100 most frequent tokens of the public text.
* **AIA** (attribute): points above the majority class of the attacked records: oblivious / adaptive. **Worst**: the
  accuracy of the best attack. The best of six on few records looks better than it is: an interval that reaches the
  majority's share shows nothing.
* **Drop**: points of accuracy below `none`. **Factor**: perplexity over that of `none`.
* **ROUGE-L, BLEU**: of greedy answers to forms of the test set against all texts that were written to the same form
  (ROUGE: the nearest counts). The answer's own rows are released with the mechanism as well, as in a job; without a
  figure where a mechanism can't release a text that grows.
* Utility: all weights above the cut trained on releases, each record released once; `none` sends clean vectors.
* **With a tail** (`codes-tail`) the device trains the last block and, in a skip, a copy of its own blocks on clean
  vectors (`--tail 1 --skip tuned`), and the cloud's blocks stay as they are: no gradient leaves. Below the tables
  stands what the same blocks reach without any cloud.
* Settings are the defaults or named below; none was chosen on a test split. Accuracy of few records moves by points
  from run to run: see the intervals.
* **Claim**: what the mechanism's own statement guarantees; epsilon a position, and epsilon spent once on counts of the
  owner's records.
"""

_GRADIENTS = (
    "what the gradients that training sends back name, of all ordinary tokens: every predicted one, whatever the "
    "mechanism. The other columns, the worst included, are of the releases alone, as in a job that sends no gradient; "
    "where gradients are sent, the larger of the two counts."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A setting on a data set, over its seeds. figures: (attack, knowledge, figure) -> mean value, low, high, floor;
    by_seed: of each seed its number, its utility and what the worst inversion names in it.
    """

    name: str
    cut: int
    seeds: int
    params: dict[str, Any]
    utility: dict[str, float]
    figures: dict[tuple[str, str, str], Figure]
    by_seed: list[dict[str, float]]
    claim: str

    def worst(self, attacks: Sequence[str], figure: str) -> tuple[str, str, Figure] | None:
        """(attack, knowledge, figure) of the attack that recovers most."""
        known = [(a, k, found) for (a, k, f), found in self.figures.items() if f == figure and a in attacks]
        return max(known, key=lambda row: row[2]["value"], default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "mechanism": self.name,
            "cut": self.cut,
            "seeds": self.seeds,
            "params": self.params,
            "utility": self.utility,
            "by_seed": self.by_seed,
            "claim": self.claim,
            "attacks": [
                {"attack": attack, "knowledge": knowledge, "figure": figure, **found}
                for (attack, knowledge, figure), found in self.figures.items()
            ],
        }


def rows_of(done: Sequence[tuple[Cell, dict[str, Any]]]) -> list[Row]:
    """One row a setting, in the order in which they come, from the finished cells of ONE data set."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for cell, result in done:
        by_name.setdefault(cell.setting.name, []).append(result)
    return [_row(name, results) for name, results in by_name.items()]


def write_results(
    folder: Path, scale: str, done: Sequence[tuple[Cell, dict[str, Any]]], missing: Sequence[Cell]
) -> Path:
    """`folder`.md and .json, pictures in `folder`. missing: planned but not run. Returns the page's path."""
    tables = {data: rows_of([pair for pair in done if pair[0].data is data]) for data in _sets(c for c, _ in done)}
    names = {data: next(cell.model for cell, _ in done if cell.data is data) for data in tables}
    document = {
        "scale": scale,
        "sizes": {cell.data.name: cell.amount.to_dict(cell.data.task) for cell, _ in done},
        "data": {
            data.name: {"model": names[data], "attribute": data.attribute, "rows": [row.to_dict() for row in rows]}
            for data, rows in tables.items()
        },
        "not_run": [cell.file.removesuffix(".json") for cell in missing],
    }
    page = folder.with_name(folder.name + ".md")
    lines = [*_head(scale, [cell for cell, _ in done])]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for data, rows in tables.items():
            lines += ["", f"## {data.name} ({names[data]})", "", *_section(data, rows, folder.name)]
            for figure, what in _PICTURES.items():
                drawn = _picture(data, names[data], rows, figure, what)
                (folder / _picture_name(data, figure)).write_text(drawn, encoding="utf-8")
        lines += ["", *_unfinished(missing)]
        page.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageFull(f"{page} can't be written: {error.strerror or error}") from error
    return page


def _sets(cells: Iterable[Cell]) -> list[DataSet]:
    return list({cell.data.name: cell.data for cell in cells}.values())


def _row(name: str, results: Sequence[dict[str, Any]]) -> Row:
    first = results[0]
    keys = {(_family(row["name"]), row["knowledge"]): tuple(row["figures"]) for row in first["attacks"]}
    figures = {
        (attack, knowledge, figure): _mean([_best(result, attack, knowledge, figure) for result in results])
        for (attack, knowledge), known in keys.items()
        for figure in known
    }
    utility = {key: float(np.mean([result["utility"][key] for result in results])) for key in first["utility"]}
    return Row(
        name=name,
        cut=first["cut"],
        seeds=len(results),
        params=first["question"]["params"],
        utility=utility,
        figures=figures,
        by_seed=[_one_seed(result) for result in results],
        claim=_claim(first["statement"]),
    )


def _one_seed(result: dict[str, Any]) -> dict[str, float]:
    utility, attacks = result["utility"], result["attacks"]
    name = "perplexity" if "perplexity" in utility else "accuracy"
    found = {"seed": result["question"]["seed"], name: utility[name]}
    for figure in _PICTURES:
        found[figure] = max(row["figures"][figure]["value"] for row in attacks if _family(row["name"]) in INVERSIONS)
    return found


def _family(attack: str) -> str:
    """EIA-2a and EIA-2b are two variants of one attack."""
    return attack.rstrip("ab")


def _best(result: dict[str, Any], attack: str, knowledge: str, figure: str) -> Figure:
    rows = [r for r in result["attacks"] if _family(r["name"]) == attack and r["knowledge"] == knowledge]
    best: Figure = max((row["figures"][figure] for row in rows), key=lambda found: found["value"])
    return best


def _mean(figures: Sequence[Figure]) -> Figure:
    def over_seeds(key: str) -> float | None:
        known = [figure[key] for figure in figures]
        return None if None in known else round(float(np.mean(known)), 4)

    return {key: over_seeds(key) for key in figures[0]}


def _claim(statement: dict[str, Any]) -> str:
    if statement["guarantee"] == "none":
        return "none"
    epsilon = statement.get("position_epsilon")
    once = f", {statement['fitted_epsilon']:g} once" if statement.get("fitted_epsilon") else ""
    position = f", {epsilon:.3g} a position" if epsilon is not None else ""
    return f"{statement['guarantee']}{position}{once}"


def _head(scale: str, cells: Sequence[Cell]) -> list[str]:
    lines = [
        f"# The paper's evaluation, scale `{scale}`",
        "",
        f"`python -m research.paper --scale {scale} --data DATA`; which cells that is, and which are still to be "
        "run, is at the end.",
        "",
        *_HOW.splitlines(),
        "",
    ]
    for sizes in dict.fromkeys(cell.amount for cell in cells):
        names = ", ".join(data.name for data in _sets(cell for cell in cells if cell.amount == sizes))
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


def _section(data: DataSet, rows: Sequence[Row], folder: str) -> list[str]:
    clean = next((row for row in rows if row.name == "none"), None)
    generation = data.task == "causal-lm"
    utility = _LANGUAGE if generation else _CLASSES
    columns = ["mechanism", "cut", *utility, *INVERSIONS, "worst, all", "worst, content"]
    told = []
    for row in rows:
        cells = [row.name, str(row.cut), *_utility(row, clean), *(_inversion(row, attack) for attack in INVERSIONS)]
        cells += [_with_interval(row.worst(INVERSIONS, figure)) for figure in ("top1", "content_top1")]
        told.append(cells + ([_percent(row.figures.get((GRADIENTS, "oblivious", "top1")))] if generation else []))
    lines = [data.note, "", _floors(rows), ""]
    lines += _table([*columns, GRADIENTS] if generation else columns, told)
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
    lines += ["", "Settings: " + ("; ".join(named) or "defaults") + "; all else at the registry's defaults.", ""]
    lines += _seeds(rows)
    for row in rows:
        if "alone" in row.utility:
            lines += [f"Without a cloud the device of `{row.name}` reaches {100 * row.utility['alone']:.1f}.", ""]
    lines += [f"![{data.name}, {what}]({folder}/{_picture_name(data, figure)})" for figure, what in _PICTURES.items()]
    return lines


def _seeds(rows: Sequence[Row]) -> list[str]:
    """How far seeds differ: nothing where there is one."""
    if all(row.seeds == 1 for row in rows):
        return []
    name = next(name for name in ("perplexity", "accuracy") if name in rows[0].by_seed[0])

    def told(row: Row, figure: str) -> str:
        return ", ".join((_round if figure == "perplexity" else _share)(one[figure]) for one in row.by_seed)

    figures = {name: name, "top1": "worst, all", "content_top1": "worst, content"}
    return [
        "Seed by seed (another choice of attacked records, order of training and draw of everything):",
        "",
        *_table(
            ["mechanism", *figures.values()], [[row.name, *(told(row, figure) for figure in figures)] for row in rows]
        ),
        "",
    ]


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]


def _floors(rows: Sequence[Row]) -> str:
    """Those of the first row: all rows have the same attacked records, seed by seed."""
    told = []
    for attacks, figure, what in (
        (INVERSIONS, "top1", "all tokens"),
        (INVERSIONS, "content_top1", "content words"),
        (ATTRIBUTES, "accuracy", "the attribute (majority)"),
    ):
        found = rows[0].worst(attacks, figure)
        if found is None:
            continue
        told.append(f"{what} {100 * found[2]['floor']:.1f}")
        if found[2].get("language_floor") is not None:
            told[-1] += f" (by a language model that knows the lengths only: {100 * found[2]['language_floor']:.1f})"
    majority = rows[0].utility.get("majority")
    if majority is not None:
        told.append(f"the task (majority) {100 * majority:.1f}")
    return "Floors: " + ", ".join(told) + "."


def _utility(row: Row, clean: Row | None) -> list[str]:
    told = row.utility
    if "perplexity" in told:
        factor = "-" if clean is None else _round(told["perplexity"] / clean.utility["perplexity"])
        near = [_share(told["rouge_l"]), f"{told['bleu']:.1f}"] if "bleu" in told else ["-", "-"]
        return [_round(told["perplexity"]), factor, _share(told["token_accuracy"]), *near]
    value = f"{100 * told['accuracy']:.1f} [{100 * told['low']:.1f}, {100 * told['high']:.1f}]"
    drop = "-" if clean is None else f"{100 * (clean.utility['accuracy'] - told['accuracy']):.1f}"
    return [value, f"{100 * told['macro_f1']:.1f}", drop]


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _inversion(row: Row, attack: str) -> str:
    """Oblivious / adaptive; the row's worst in bold."""
    worst = row.worst(INVERSIONS, "top1")
    told = []
    for knowledge in _KNOWLEDGE:
        text = _percent(row.figures.get((attack, knowledge, "top1")))
        told.append(f"**{text}**" if worst is not None and worst[:2] == (attack, knowledge) else text)
    return " / ".join(told)


def _above(row: Row, attack: str) -> str:
    told = []
    for knowledge in _KNOWLEDGE:
        found = row.figures.get((attack, knowledge, "accuracy"))
        told.append("-" if found is None else f"{100 * (found['value'] - found['floor']):+.1f}")
    return " / ".join(told)


def _attribute(row: Row) -> str:
    """Accuracy of the best attack with its interval: few records make it wide."""
    return _with_interval(row.worst(ATTRIBUTES, "accuracy"))


def _percent(figure: Figure | None) -> str:
    return "-" if figure is None else _share(figure["value"])


def _with_interval(worst: tuple[str, str, Figure] | None) -> str:
    if worst is None:
        return "-"
    figure = worst[2]
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _picture_name(data: DataSet, figure: str) -> str:
    return f"{data.name}-{figure.removesuffix('top1').rstrip('_') or 'all'}.svg"


def _picture(data: DataSet, model: str, rows: Sequence[Row], figure: str, what: str) -> str:
    generation = data.task == "causal-lm"
    points = []
    majority = rows[0].utility.get("majority")
    for row in rows:
        worst, told = row.worst(INVERSIONS, figure), row.utility
        if worst is None:
            continue
        value = told["token_accuracy"] if generation else told["accuracy"]
        x = (worst[2]["value"], worst[2]["low"], worst[2]["high"])
        points.append(
            Point(series=row.name, name=row.name, x=x, y=(value, told.get("low", value), told.get("high", value)))
        )
    return frontier(
        points,
        title=f"{data.name}, {model}: what the worst inversion recovers",
        x_label=f"{what} recovered (top-1)",
        y_label="next tokens told right" if generation else "accuracy",
        level=None if majority is None else Level(name="the commonest class", y=majority),
        join=False,
    )


def _unfinished(missing: Sequence[Cell]) -> list[str]:
    if not missing:
        return ["All cells of this scale have been run."]
    lines = ["## Not run", "", "Planned at this scale and not run; the same command goes on with them:", ""]
    for data, seed in dict.fromkeys((cell.data.name, cell.seed) for cell in missing):
        mine = [cell.setting.name for cell in missing if (cell.data.name, cell.seed) == (data, seed)]
        lines.append(f"* {data}, seed {seed}: {', '.join(mine)}")
    return lines
