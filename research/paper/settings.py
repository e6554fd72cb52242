"""What is compared, and how large everything is.

No mechanism's settings were chosen by a test split; the sizes of `small` were changed once after first SST-2 results.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from privtune.device.audit.attacks.attribute import AttributeSettings
from privtune.device.audit.attacks.learned import LearnedSettings
from privtune.device.audit.attacks.optimise import OptimiseSettings
from privtune.device.audit.suite import FULL, QUICK, Size
from privtune.device.audit.utility import Training
from privtune.device.noise.registry import REGISTRY, entry
from privtune.shared.job_spec import MechanismSpec, Task
from research.paper.datasets import DataSet

ScaleName = Literal["smoke", "small", "full"]

_SHORT = 64  # tokens


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A row of the tables: a mechanism, and what its settings are besides their defaults.

    labelled: settings more, where the records have labels; depth: blocks on the device (fewer where there are not so
    many); sweep: one of several strengths, which its name tells; tail: last blocks that the device trains, with a tuned
    skip.
    """

    mechanism: str
    params: dict[str, Any]
    labelled: dict[str, Any]
    depth: int = 1
    sweep: bool = False
    tail: int = 0

    @property
    def name(self) -> str:
        """As in tables and file names."""
        told = [f"{value:g}" for key, value in self.params.items() if self.sweep and isinstance(value, float)]
        return "-".join([self.mechanism, *(["tail"] if self.tail else []), *told])

    def spec(self, task: Task) -> MechanismSpec:
        """As a job would name it."""
        labelled = self.labelled if task == "classification" else {}
        return MechanismSpec(name=self.mechanism, params={**self.params, **labelled})

    def serves(self, task: Task) -> bool:
        """Whether it is measured on this task. Records that are shortened lose the places of their next tokens; what a
        tail makes of a language model is not measured here.
        """
        if self.tail:
            return task == "classification"
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
# Few codes say little; the device learns the task, beside what the frozen cloud makes of them. Chosen on SST-2's dev.
_WITH_TAIL: dict[str, dict[str, Any]] = {"codes": {"codes": 8, "dims": 4}}
_RATIOS = {"dchi": (1.0, 3.0), "privtune": (1.0, 3.0), "snd": (1.0, 3.0), "sap": (1.0, 3.0), "textobfuscator": (1.0,)}


def settings(*, sweep: bool) -> list[Setting]:
    """Every mechanism of the registry in its order, some with a tail too; sweep: other strengths of noise as well."""
    out = []
    for name in REGISTRY:
        params, labelled = _PARAMS.get(name, {}), _LABELLED.get(name, {})
        usual = Setting(mechanism=name, params=params, labelled=labelled, depth=_DEPTH.get(name, 1))
        out.append(usual)
        if name in _WITH_TAIL:
            out.append(replace(usual, params=_WITH_TAIL[name], tail=1))
        if sweep:
            out += [replace(usual, params={**params, "noise_ratio": r}, sweep=True) for r in _RATIOS.get(name, ())]
    return out


@dataclass(frozen=True, kw_only=True)
class Amount:
    """train, test: records; suite: the attacks, what they are built on and attack; training: the utility's; answers:
    prompts that a language model answers, with answers of at most `longest` tokens.
    """

    train: int
    test: int
    suite: Size
    training: Training
    answers: int = 0
    longest: int = 64

    def to_dict(self, task: Task) -> dict[str, Any]:
        """JSON-ready: what decides the figures of a task."""
        sizes = asdict(self)
        if task == "classification":  # nothing is written, and the attack with a language model is not run
            del sizes["answers"], sizes["longest"], sizes["suite"]["beam"], sizes["suite"]["beam_records"]
        return sizes


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size of the whole evaluation. short, long: classification of records up to 64 tokens, or longer ones."""

    name: ScaleName
    short: Amount
    long: Amount
    generation: Amount
    seeds: tuple[int, ...]
    sweep: bool = False

    def of(self, data: DataSet) -> Amount:
        """How much of everything for this data set."""
        if data.task == "causal-lm":
            return self.generation
        return self.short if data.length <= _SHORT else self.long


def _small(*, public: int, attacked: int, inverted: int, optimised: int) -> Size:
    learned = LearnedSettings(epochs=1, hidden=1024, encoder_rate=2e-4)
    return replace(
        QUICK,
        public=public,
        attacked=attacked,
        inverted=inverted,
        tokenwise=learned,
        sequence=learned,
        attribute=AttributeSettings(epochs=1, encoder_rate=2e-4),
        optimise=OptimiseSettings(iterations=40),
        optimise_records=optimised,
        beam_records=inverted,
    )


_SMOKE = replace(
    _small(public=60, attacked=12, inverted=12, optimised=4),
    optimise=OptimiseSettings(iterations=3),
    pooled=AttributeSettings(epochs=3),
)
# One pass over more records instead of three over fewer: the same work, and counts of private records hold less noise.
_ONCE = Training(epochs=1, batch=16, precision="bfloat16")
_BF16 = Training(epochs=3, precision="bfloat16")
_CAUSAL = Training(epochs=1, batch=8, top_rate=5e-5, precision="bfloat16")
_SMOKE_AMOUNT = Amount(train=48, test=32, suite=_SMOKE, training=Training(epochs=1))
_FULL_AMOUNT = Amount(train=100_000, test=2000, suite=replace(FULL, seeds=1), training=_BF16)
SCALES: dict[str, Scale] = {
    "smoke": Scale(
        name="smoke",
        short=_SMOKE_AMOUNT,
        long=_SMOKE_AMOUNT,
        generation=Amount(train=24, test=16, suite=_SMOKE, training=Training(epochs=1, batch=8), answers=4, longest=16),
        seeds=(0,),
    ),
    "small": Scale(
        name="small",
        short=Amount(
            train=1800,
            test=400,
            suite=_small(public=400, attacked=160, inverted=50, optimised=16),
            training=_ONCE,
        ),
        long=Amount(
            train=1000,
            test=300,
            suite=_small(public=200, attacked=120, inverted=24, optimised=8),
            training=_ONCE,
        ),
        generation=Amount(
            train=80,
            test=40,
            suite=_small(public=100, attacked=40, inverted=16, optimised=8),
            training=_CAUSAL,
            answers=40,
        ),
        seeds=(0, 1, 2),
    ),
    "full": Scale(
        name="full",
        short=_FULL_AMOUNT,
        long=_FULL_AMOUNT,
        generation=Amount(
            train=100_000,
            test=1000,
            suite=replace(FULL, attacked=300, inverted=300, seeds=1),
            training=replace(_CAUSAL, epochs=3),
            answers=300,
        ),
        seeds=(0, 1, 2),
        sweep=True,
    ),
}
