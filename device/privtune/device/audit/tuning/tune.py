"""Measures settings of a mechanism on a dev split and chooses one.

A test split can't be given: figures on the records of the choice would flatter the setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.audit.metrics import bootstrap, mean_difference
from privtune.device.audit.tuning.choice import Choice, Estimate, Recovered, Setting, Value, Words, between, choose
from privtune.device.audit.tuning.request import TuneRequest, Watch
from privtune.device.audit.tuning.trials import FIGURES, Trials
from privtune.shared.errors import StorageFull


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The result.

    clean: without noise.
    settings: in the order of their values.
    facts: everything measured, by value.
    gains: accuracy over that of the same device alone, by value; empty unless it was asked for.
    """

    clean: Setting
    settings: tuple[Setting, ...]
    choice: Choice
    records: dict[str, int]
    facts: dict[Value, dict[str, Any]]
    gains: dict[Value, Estimate]


def tune(request: TuneRequest, home: Path, out: Path, watch: Watch) -> Tuned:
    """Measure what is not kept in `out` yet, refine and choose. An interrupted call resumes.

    Raises DataInvalid if the dev split is too small or is training data, InvalidInput for values out of range,
    StorageFull.
    """
    for value in request.values:
        request.spec(value)
    make_folder(out)
    trials = Trials(request, home, out, watch)
    clean = trials.facts(None)
    measured = {value: trials.facts(value) for value in request.values}

    def settings() -> tuple[Setting, ...]:
        return tuple(setting_of(value, measured[value], clean) for value in in_order(measured))

    for _ in range(request.refine):
        middle = between(settings(), request.wish, whole=request.whole)
        if middle is None:
            break
        measured[middle] = trials.facts(middle)
    alone = trials.alone() if request.measure_gain else None
    found = settings()
    without = setting_of("none", clean, clean)
    return Tuned(
        clean=without,
        settings=found,
        choice=choose(found, request.wish, without, trials.majority),
        records=trials.records,
        facts=measured,
        gains={} if alone is None else {value: _gain(facts["right"], alone) for value, facts in measured.items()},
    )


def setting_of(value: Value, facts: dict[str, Any], clean: dict[str, Any]) -> Setting:
    """A setting with its accuracy and the loss of it, over the same dev records, averaged over training seeds."""
    right_B, clean_B = (_share(one["right"]) for one in (facts, clean))
    rows = np.stack([right_B, clean_B - right_B, np.ones(len(right_B))], axis=1)
    accuracy, drop = (
        Estimate(value=share, low=low, high=high) for share, low, high in bootstrap(rows, [(0, 2), (1, 2)])
    )
    recovered: dict[Words, Recovered] = {words: Recovered(**facts["recovered"][words]) for words in FIGURES}
    return Setting(value=value, recovered=recovered, accuracy=accuracy, drop=drop)


def _gain(right: Sequence[str], alone: Sequence[str]) -> Estimate:
    value, low, high = mean_difference(_share(right), _share(alone))
    return Estimate(value=value, low=low, high=high)


def _share(right: Sequence[str]) -> NDArray[np.float64]:
    """Of each dev record the share of training seeds that get it right."""
    share_B: NDArray[np.float64] = np.mean([[int(one) for one in seed] for seed in right], axis=0)
    return share_B


def in_order(values: Any) -> list[Value]:
    """Numbers by size; other values in the order given."""
    listed = list(values)
    return listed if any(isinstance(value, str | bool) for value in listed) else sorted(listed)


def make_folder(folder: Path) -> None:
    """Check that results can be written, before hours of work. Raises StorageFull."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "can-write").touch()
        (folder / "can-write").unlink()
    except OSError as error:
        raise StorageFull(f"{folder} can't be written: {error.strerror}; give --out another folder.") from error
