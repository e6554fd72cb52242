"""What is compared, and at which scale.

No mechanism's settings were chosen on a test split. The sizes of `small` were changed once, after the first SST-2
results.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from privtune.device.audit.attacks.attribute import AttributeSettings
from privtune.device.audit.attacks.learned import LearnedSettings
from privtune.device.audit.attacks.optimise import OptimiseSettings
from privtune.device.audit.sizes import FULL, QUICK, Size
from privtune.device.audit.utility import UtilityTraining
from privtune.device.noise.registry import REGISTRY, entry
from privtune.shared.job_spec import MechanismSpec, Task
from research.paper.datasets import DataSet

ScaleName = Literal["smoke", "small", "full"]

_SHORT = 64  # tokens


@dataclass(frozen=True, kw_only=True)
class PaperSetting:
    """A row of the tables: a mechanism and those of its settings that differ from the defaults.

    labelled: further settings for records with labels.
    depth: blocks on the device, or as many as the model has.
    sweep: one of several strengths; its name then says which.
    tail: last blocks, which the device trains with a tuned skip.
    """

    mechanism: str
    params: dict[str, Any]
    labelled: dict[str, Any]
    depth: int = 1
    sweep: bool = False
    tail: int = 0

    @property
    def name(self) -> str:
        """As in tables and keys of cells."""
        strength = [f"{value:g}" for value in self.params.values() if self.sweep and isinstance(value, float)]
        return "-".join([self.mechanism, *(["tail"] if self.tail else []), *strength])

    def spec(self, task: Task) -> MechanismSpec:
        """The mechanism as a job names it."""
        labelled = self.labelled if task == "classification" else {}
        return MechanismSpec(name=self.mechanism, params={**self.params, **labelled})

    def serves(self, task: Task) -> bool:
        """Whether it is measured on this task.

        Shortened records lose the places of their next tokens. Language models with a tail are not measured here.
        """
        if self.tail:
            return task == "classification"
        return task == "classification" or not entry(self.mechanism).load().shortens


# What task-aware mechanisms learn about the task, with the budget that their own documentation assumes.
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
_DEPTH = {"codes": 3}  # it quantizes states in context, which take some blocks to form
# Few codes carry little, so the device learns the task, beside the frozen cloud's output. Chosen on SST-2's dev split.
_WITH_TAIL: dict[str, dict[str, Any]] = {"codes": {"codes": 8, "dims": 4}}
_RATIOS = {"dchi": (1.0, 3.0), "privtune": (1.0, 3.0), "snd": (1.0, 3.0), "sap": (1.0, 3.0), "textobfuscator": (1.0,)}


def settings(*, sweep: bool) -> list[PaperSetting]:
    """Every mechanism of the registry, in its order, some also with a tail. sweep: at several strengths of noise."""
    out = []
    for name in REGISTRY:
        params, labelled = _PARAMS.get(name, {}), _LABELLED.get(name, {})
        usual = PaperSetting(mechanism=name, params=params, labelled=labelled, depth=_DEPTH.get(name, 1))
        out.append(usual)
        if name in _WITH_TAIL:
            out.append(replace(usual, params=_WITH_TAIL[name], tail=1))
        if sweep:
            out += [replace(usual, params={**params, "noise_ratio": r}, sweep=True) for r in _RATIOS.get(name, ())]
    return out


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much of everything for one kind of data set.

    train, test: records.
    suite: the attacks and their records.
    training: for utility.
    answers: prompts that a language model answers.
    longest: tokens per answer at most.
    """

    train: int
    test: int
    suite: Size
    training: UtilityTraining
    answers: int = 0
    longest: int = 64

    def to_dict(self, task: Task) -> dict[str, Any]:
        """JSON-ready: the sizes that decide the figures of a task."""
        sizes = asdict(self)
        if task == "classification":  # no answers, and no attack with a language model
            del sizes["answers"], sizes["longest"], sizes["suite"]["beam"], sizes["suite"]["beam_records"]
        for late in ("reader", "masked"):  # cells are older
            if sizes["suite"][late] is None:
                del sizes["suite"][late]
        return sizes


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size of the whole evaluation. short, long: classification of records up to 64 tokens, and of longer ones."""

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
# One pass over more records instead of three over fewer: the same work, and private counts are less noisy.
_ONCE = UtilityTraining(epochs=1, batch=16, precision="bfloat16")
_BF16 = UtilityTraining(epochs=3, precision="bfloat16")
_CAUSAL = UtilityTraining(epochs=1, batch=8, top_rate=5e-5, precision="bfloat16")
_SMOKE_AMOUNT = Amount(train=48, test=32, suite=_SMOKE, training=UtilityTraining(epochs=1))
_FULL_AMOUNT = Amount(train=100_000, test=2000, suite=replace(FULL, seeds=1), training=_BF16)
SCALES: dict[str, Scale] = {
    "smoke": Scale(
        name="smoke",
        short=_SMOKE_AMOUNT,
        long=_SMOKE_AMOUNT,
        generation=Amount(
            train=24, test=16, suite=_SMOKE, training=UtilityTraining(epochs=1, batch=8), answers=4, longest=16
        ),
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
