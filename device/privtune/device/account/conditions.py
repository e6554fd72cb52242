"""What makes a noise distribution, in words: its owner reads what changed between two jobs.

An admission has its `conditions` (settings, by name), and `unseen`: what else its distribution depends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from privtune.device.noise.registry import validate
from privtune.shared.job_spec import JobSpec

Json = dict[str, Any]
# What no setting shows; each makes those after it differ as well, but for the store.
WEIGHTS, RULES, NOISE, DRAW, STORE = "weights", "rules", "noise", "draw", "store"
_UNSEEN = {
    WEIGHTS: "other weights of the model",
    RULES: "other recognisers or tables of surrogates",
    NOISE: "other public texts or tables of the mechanism, or another version",
    DRAW: "other surrogates: with noise every job draws its own",
    STORE: "a new store of releases",
}


def conditions(spec: JobSpec) -> Json:
    """The settings that make a job's noise distribution."""
    replaced = {name: value for name, value in spec.surrogates.model_dump().items() if name != "replace"}
    return {
        "mechanism": spec.mechanism.name,
        **{f"{spec.mechanism.name} {name}": value for name, value in validate(spec.mechanism).model_dump().items()},
        "surrogates": spec.surrogates.replace,
        **({f"surrogate {name}": value for name, value in replaced.items()} if spec.surrogates.on else {}),
        "cut": spec.cut,
        "codec": spec.codec,
        "max_length": spec.train.max_length,
        "pad_to": " ".join(map(str, sorted(spec.train.pad_to))) or "none",
    }


def changes(before: Json, now: Json) -> list[str]:
    """The settings of two jobs that differ, like "cut 2 instead of 1"."""
    pairs = {name: (value, before[name]) for name, value in now.items() if name in before}
    return [f"{name} {_shown(one)} instead of {_shown(two)}" for name, (one, two) in pairs.items() if one != two]


def unlike(rows: Sequence[Json], now: Json) -> str:
    """How an admission differs from the most similar of others: "than in job A (cut 2 instead of 1)"; "" without any.

    rows: admissions, oldest first.
    """
    compared = [(_differences(row, now), row["job"]) for row in reversed(rows) if "conditions" in row]
    lines, job = min((one for one in compared if one[0]), key=lambda one: len(one[0]), default=([], ""))
    return f" than in job {job} ({', '.join(lines)})" if lines else ""


def _differences(before: Json, now: Json) -> list[str]:
    lines = changes(before["conditions"], now["conditions"])
    unseen = now.get("unseen", {})
    other = [name for name in _UNSEEN if name in unseen and unseen[name] != before["unseen"][name]]
    if WEIGHTS in other and before["model"] != now["model"]:
        return [*lines, f"model {now['model']} instead of {before['model']}"]
    return lines or [_UNSEEN[name] for name in other[:1]]


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
