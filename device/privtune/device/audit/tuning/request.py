"""What `privtune tune-noise` is asked, and who watches its progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from privtune.device.audit.sizes import Size
from privtune.device.audit.tuning.choice import Value, Wish
from privtune.device.audit.utility import UtilityTraining
from privtune.device.data.source import DataSource
from privtune.device.noise.registry import entry, validate
from privtune.device.protections.measured import NO_GAIN, measured
from privtune.shared.job_spec import MechanismSpec, Skip, SurrogateSpec


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """What is tuned.

    tail, skip: as of the job. The loss is always counted from the whole model trained on clean vectors of the owner's
        own text.
    surrogates: what is replaced before noise is added.
    fixed: parameters that do not vary.
    param, values: the varied one, and the values to try.
    refine: number of further values between two of them.
    measure_gain: also train the same device alone.
    """

    model: str
    train: DataSource
    dev: DataSource
    cut: int = 1
    tail: int = 0
    skip: Skip = "frozen"
    surrogates: SurrogateSpec = field(default_factory=lambda: SurrogateSpec(replace="nothing"))
    mechanism: str
    fixed: dict[str, Value] = field(default_factory=dict)
    param: str
    values: tuple[Value, ...]
    wish: Wish
    refine: int = 0
    measure_gain: bool = False
    size: Size
    training: UtilityTraining = field(default_factory=UtilityTraining)
    max_length: int = 128
    public_text: Path | None = None
    seed: int = 0

    def spec(self, value: Value) -> MechanismSpec:
        """The mechanism at one setting. Raises InvalidInput for a value out of range."""
        spec = MechanismSpec(name=self.mechanism, params={**self.fixed, self.param: value})
        validate(spec)
        return spec

    def gain(self, value: Value) -> str:
        """What the cloud adds at one setting by the published tables, in a sentence."""
        settings = {"cut": self.cut, "tail": self.tail, "skip": self.skip, "mechanism": self.spec(value).model_dump()}
        row = measured({**settings, "surrogates": self.surrogates.model_dump()})
        return NO_GAIN if row is None else row.gain_sentence()

    @property
    def whole(self) -> bool:
        """Whether the varied parameter takes whole numbers only."""
        described: dict[str, Any] = entry(self.mechanism).describe()["params"].get(self.param, {})
        return described.get("type") == "integer"


class Watch(Protocol):
    """Watches the progress of the tuning."""

    def begin(self, name: str, number: int, total: int, seconds_left: float | None) -> None:
        """A setting is about to be measured: the `number`th of a `total` that may still grow."""

    def say(self, what: str, share: float) -> None:
        """This share of one step is done."""

    def end(self, name: str, facts: dict[str, Any], *, kept: bool) -> None:
        """The setting is measured. kept: it had been measured before."""
