"""Finished cells as rows: one per setting on a data set, averaged over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.paper.cell import PaperCell

Figure = dict[str, Any]  # value, low, high, floor; None for an unknown interval
INVERSIONS, ATTRIBUTES = ("EIA-1", "EIA-2", "EIA-3"), ("AIA-1", "AIA-2", "AIA-3")
PICTURED = {"top1": "all words", "content_top1": "content words"}


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A setting on a data set, over its seeds.

    figures: (attack, knowledge, figure) -> mean value, low, high and floor.
    by_seed: each seed's number, its utility and what the worst inversion recovers.
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


def rows_of(done: Sequence[tuple[PaperCell, dict[str, Any]]]) -> list[PaperRow]:
    """One row per setting, in the order of their first cells; `done` holds the finished cells of ONE data set."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for cell, result in done:
        by_name.setdefault(cell.setting.name, []).append(result)
    return [_row(name, results) for name, results in by_name.items()]


def _row(name: str, results: Sequence[dict[str, Any]]) -> PaperRow:
    first = results[0]
    keys = {(_family(row["name"]), row["knowledge"]): tuple(row["figures"]) for row in first["attacks"]}
    figures = {
        (attack, knowledge, figure): _mean([_best(result, attack, knowledge, figure) for result in results])
        for (attack, knowledge), known in keys.items()
        for figure in known
    }
    utility = {key: float(np.mean([result["utility"][key] for result in results])) for key in first["utility"]}
    return PaperRow(
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
    for figure in PICTURED:
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
    position = f", {epsilon:.3g} per position" if epsilon is not None else ""
    return f"{statement['guarantee']}{position}{once}"
