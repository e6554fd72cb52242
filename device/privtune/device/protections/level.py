"""Which protections a job's settings reach. A policy asks this; no job says of itself how well it protects."""

from __future__ import annotations

from privtune.device.noise.registry import entry, validate
from privtune.device.protections.protection import PROTECTIONS, RANK
from privtune.shared.job_spec import JobSpec, MechanismSpec, SurrogateSpec

_ROUNDING = 1e-6


def reaches(spec: JobSpec, name: str) -> bool:
    """Whether the settings protect at least as `name` does: each at its value or at one that protects more.

    Raises InvalidInput for settings that the job's mechanism does not take.
    """
    return any(RANK[one] >= RANK[name] and _meets(spec, one) for one in PROTECTIONS)


def replaces_enough(spec: JobSpec) -> bool:
    """Whether surrogates replace at least what `names` replaces, so that gradients name no more than that leaves."""
    return spec.surrogates.on and spec.surrogates.rank <= SurrogateSpec().rank


def _meets(spec: JobSpec, name: str) -> bool:
    if name == "none":
        return True
    if name == "names":
        return replaces_enough(spec)
    wanted = PROTECTIONS[name].settings
    if spec.mechanism.name != wanted["mechanism"]["name"] or spec.cut < wanted["cut"] or not spec.tail:
        return False
    mine = validate(spec.mechanism).resolved()
    least = validate(MechanismSpec.model_validate(wanted["mechanism"])).resolved()
    return all(
        _as_strong(mine[parameter], least[parameter], way)
        for parameter, way in entry(spec.mechanism.name).params.weaker.items()
    )


def _as_strong(mine: float | None, least: float | None, way: str) -> bool:
    if mine is None or least is None or way == "set":
        return mine == least
    return mine <= least * (1 + _ROUNDING) if way == "above" else mine >= least * (1 - _ROUNDING)
