"""The audited setting between clean vectors and a blind guess, and other strengths of its mechanism.

Other strengths are attacked by the codebook only (EIA-1 euclidean and bayes), which takes minutes instead of hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from privtune.device.audit.attacks.attack import Lab, Say
from privtune.device.audit.attacks.codebook import Codebook, CodebookSettings
from privtune.device.audit.case import Case
from privtune.device.audit.metrics import Figure, InversionScore
from privtune.device.audit.observed import Observed
from privtune.device.audit.outcome import Outcome
from privtune.device.audit.probe import use_for_training
from privtune.device.audit.sizes import Size
from privtune.device.audit.victim import Knowledge, Victim
from privtune.device.noise.params import Params
from privtune.device.noise.registry import build, validate
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import MechanismSpec

STRENGTHS = (0.25, 0.5, 2.0, 4.0)
# The parameter that sets the strength of a mechanism is the first that it has; False: a larger one means less noise.
_KNOBS = (("eta", False), ("noise_ratio", True), ("epsilon", False), ("cluster_size", True))


def place(
    case: Case, lab: Lab, size: Size, outcome: Outcome, other: list[MechanismSpec], say: Say
) -> list[dict[str, Any]]:
    """Points of the picture, JSON-ready: series, name, content words recovered, accuracy. Empty without labels.

    other: further strengths to measure.
    """
    worst = outcome.worst("adaptive", "content_top1")
    if worst is None or not outcome.utility:
        return []
    here, clean, released = worst.figures["content_top1"], outcome.utility["clean"], outcome.utility["released"]
    attack = _codebook(lab, "oblivious")
    points = [
        _point("clean vectors", "", _recovered(attack, lab, case.victim.clean(case.attacked.ids)), clean),
        _point("blind guess", "", _flat(here.floor), _flat(released.floor)),
        _point("this audit", "this audit", here, released),
    ]
    for spec in other:
        points.append(_measured(case, size, spec))
        say(f"{spec.name} {_named(spec)}", 1.0)
    return points


def strengths(spec: MechanismSpec) -> Iterator[MechanismSpec]:
    """The same mechanism, weaker and stronger. Raises InvalidInput if it has no parameter for that."""
    params = validate(spec)
    name, grows = _knob(params)
    value = getattr(params, name)
    for strength in STRENGTHS:
        changed = value * (strength if grows else 1 / strength)
        other = MechanismSpec(
            name=spec.name, params={**spec.params, name: max(round(changed), 1) if isinstance(value, int) else changed}
        )
        try:
            validate(other)
        except InvalidInput:
            continue  # out of range
        yield other


def _knob(params: Params) -> tuple[str, bool]:
    for name, grows in _KNOBS:
        if getattr(params, name, None):
            return name, grows
    raise InvalidInput("--frontier needs a mechanism with a strength: noise_ratio, eta, epsilon or cluster_size")


def _measured(case: Case, size: Size, spec: MechanismSpec) -> dict[str, Any]:
    if case.labelled is None or case.attacked.labels is None:
        raise InvalidInput("a frontier needs labelled records")
    mechanism = build(spec, case.victim.mechanism.context)
    victim = Victim(case.victim.bottom, mechanism, case.victim.special_ids, case.victim.importance)
    lab, observed = Lab(case.public, victim, case.encoder), victim.observe(case.attacked.ids)
    knowledge: tuple[Knowledge, ...] = ("oblivious", "adaptive")
    found = [_recovered(_codebook(lab, known), lab, observed) for known in knowledge]
    states = Lab(case.labelled, victim, case.top)
    ids, labels_B = case.attacked.ids, case.attacked.labels
    used = use_for_training(states, size.pooled, ids, observed.seen, labels_B, skip=case.skip)
    return _point("other strengths", _named(spec), max(found, key=lambda figure: figure.value), used)


def _codebook(lab: Lab, knowledge: Knowledge) -> Codebook:
    attack = Codebook(knowledge, CodebookSettings(metric="euclidean" if knowledge == "oblivious" else "bayes"))
    attack.fit(lab)
    return attack


def _recovered(attack: Codebook, lab: Lab, observed: Observed) -> Figure:
    score = InversionScore(lab.public)
    score.add(attack.attack(observed.seen), observed)
    return score.figures()["content_top1"]


def _named(spec: MechanismSpec) -> str:
    name = _knob(validate(spec))[0]
    return f"{name} {spec.params[name]:g}"


def _flat(share: float) -> Figure:
    return Figure(value=share, low=share, high=share, floor=share)


def _point(series: str, name: str, recovered: Figure, use: Figure) -> dict[str, Any]:
    axes = {"recovered": recovered, "accuracy": use}
    return {
        "series": series,
        "name": name,
        **{axis: [figure.value, figure.low, figure.high] for axis, figure in axes.items()},
    }
