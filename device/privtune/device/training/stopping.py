"""When a job with early stopping ends, and with which state: a function of its evaluations alone, all on this device.

The cloud has checkpoints of the last evaluations, and learns at the end which of them becomes the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from privtune.shared.job_spec import TrainSpec
from privtune.shared.wording import counted

Evaluations = Mapping[int, Mapping[str, float]]  # by the steps that were done, oldest first
_NAMES = {"accuracy": ("accuracy", "token_accuracy"), "loss": ("loss",), "macro_f1": ("macro_f1",)}


def best_step(evaluations: Evaluations, train: TrainSpec) -> int:
    """The step of the best evaluation, the earliest of equals. There must be one."""
    better = -1 if train.best_by == "loss" else 1

    def score(step: int) -> float:
        found = evaluations[step]
        value = next(found[name] for name in _NAMES[train.best_by] if name in found)
        return better * value if value == value else float("-inf")  # NaN is never the best

    return max(evaluations, key=score)


def has_ended(evaluations: Evaluations, train: TrainSpec) -> bool:
    """Whether so many evaluations in a row were no better than the best before them."""
    if train.early_stopping is None or not evaluations:
        return False
    best = best_step(evaluations, train)
    return sum(step > best for step in evaluations) >= train.early_stopping


def kept_line(evaluations: Evaluations, train: TrainSpec, total_steps: int) -> str:
    """For a person: where the job ended, and what is kept of it."""
    last, best = max(evaluations), best_step(evaluations, train)
    early = f"stopped after step {last:,} of {total_steps:,}: " if last < total_steps else ""
    since = counted(sum(step > best for step in evaluations), "evaluation")
    return f"{early}keeps the state of step {best:,}, the best by {train.best_by}; {since} after it no better"
