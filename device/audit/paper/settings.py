"""What is compared, and how large everything is. Fixed beforehand: nothing here was chosen by a test split."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from device.audit.attribute import AttributeSettings
from device.audit.learned import LearnedSettings
from device.audit.optimise import OptimiseSettings
from device.audit.suite import FULL, QUICK, Size
from device.audit.utility import Training
from device.noise.registry import REGISTRY, entry
from shared.config import MechanismSpec, Task

ScaleName = Literal["smoke", "small", "full"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A row of the tables: a mechanism, and what its settings are besides their defaults.

    labelled: settings more, where the records have labels; depth: blocks on the device (fewer where there are not so
    many); sweep: one of several strengths, which its name tells.
    """

    mechanism: str
    params: dict[str, Any]
    labelled: dict[str, Any]
    depth: int = 1
    sweep: bool = False

    @property
    def name(self) -> str:
        """As in tables and file names."""
        told = [f"{value:g}" for key, value in self.params.items() if self.sweep and isinstance(value, float)]
        return "-".join([self.mechanism, *told])

    def spec(self, task: Task) -> MechanismSpec:
        """As a job would name it."""
        labelled = self.labelled if task == "classification" else {}
        return MechanismSpec(name=self.mechanism, params={**self.params, **labelled})

    def serves(self, task: Task) -> bool:
        """Whether a job of this task would take it: records that are shortened lose the places of their next tokens."""
        return task == "classification" or not entry(self.mechanism).load().shortens


# What the mechanisms that know the task learn of it, with the budget that their own documentation computes with.
_GRADED = {"groups": "private", "grades": 8, "epsilon_counts": 8.0, "count_words": 16}
_LABELLED: dict[str, dict[str, Any]] = {
    "shared": _GRADED,
    "pool": _GRADED,
    "codes": {"task": "private", "epsilon_task": 8.0},
}
_PARAMS: dict[str, dict[str, Any]] = {
    "privtune": {"importance": "scale"},  # the paper's own: important tokens get less noise
    "shared": {"injection": "embedding"},
    "pool": {},
}
_DEPTH = {"codes": 3}  # it quantises states in context, which take some blocks to form
_RATIOS = {"dchi": (1.0, 3.0), "privtune": (1.0, 3.0), "snd": (1.0, 3.0), "sap": (1.0, 3.0), "textobfuscator": (1.0,)}


def settings(*, sweep: bool) -> list[Setting]:
    """Every mechanism of the registry in its order; sweep: those with noise at other strengths as well."""
    out = []
    for name in REGISTRY:
        params, labelled = _PARAMS.get(name, {}), _LABELLED.get(name, {})
        usual = Setting(mechanism=name, params=params, labelled=labelled, depth=_DEPTH.get(name, 1))
        out.append(usual)
        if sweep:
            out += [replace(usual, params={**params, "noise_ratio": r}, sweep=True) for r in _RATIOS.get(name, ())]
    return out


@dataclass(frozen=True, kw_only=True)
class Amount:
    """train, test: records; suite: the attacks, what they are built on and attack; training: the utility's."""

    train: int
    test: int
    suite: Size
    training: Training

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size of the whole evaluation."""

    name: ScaleName
    classification: Amount
    generation: Amount
    seeds: tuple[int, ...]
    sweep: bool = False

    def of(self, task: Task) -> Amount:
        """How much of everything for this task."""
        return self.classification if task == "classification" else self.generation


def _small(public: int, attacked: int, epochs: int) -> Size:
    learned = LearnedSettings(epochs=epochs, hidden=1024, encoder_rate=2e-4)
    attribute = AttributeSettings(epochs=epochs, encoder_rate=2e-4)
    optimise = OptimiseSettings(iterations=40)
    return replace(
        QUICK,
        public=public,
        attacked=attacked,
        tokenwise=learned,
        sequence=learned,
        attribute=attribute,
        optimise=optimise,
        optimise_records=min(attacked, 24),
    )


_SMOKE = replace(
    _small(60, 12, 1),
    optimise=OptimiseSettings(iterations=3),
    optimise_records=4,
    pooled=AttributeSettings(epochs=3),
)
_BF16 = Training(epochs=3, precision="bfloat16")
_CAUSAL = Training(epochs=1, batch=8, top_rate=5e-5, precision="bfloat16")
SCALES: dict[str, Scale] = {
    "smoke": Scale(
        name="smoke",
        classification=Amount(train=48, test=32, suite=_SMOKE, training=Training(epochs=1)),
        generation=Amount(train=24, test=16, suite=_SMOKE, training=Training(epochs=1, batch=8)),
        seeds=(0,),
    ),
    "small": Scale(
        name="small",
        classification=Amount(train=800, test=400, suite=_small(500, 60, 1), training=_BF16),
        generation=Amount(train=160, test=60, suite=_small(160, 30, 1), training=_CAUSAL),
        seeds=(0,),
    ),
    "full": Scale(
        name="full",
        classification=Amount(
            train=100_000, test=2000, suite=replace(FULL, seeds=1), training=Training(epochs=3, precision="bfloat16")
        ),
        generation=Amount(
            train=100_000, test=1000, suite=replace(FULL, attacked=300, seeds=1), training=replace(_CAUSAL, epochs=3)
        ),
        seeds=(0, 1, 2),
        sweep=True,
    ),
}
