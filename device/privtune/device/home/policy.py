"""The device's policy: which jobs it accepts from others. Checked before anything is sent; the device decides.

The defaults: what identifies is replaced, no mechanism protects less than at its own defaults, labels are private.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, field_validator, model_validator

from privtune.device.protections.level import reaches, replaces_enough
from privtune.device.protections.protection import DEFAULT, RANK
from privtune.shared.errors import InvalidInput, PolicyRefused
from privtune.shared.job_spec import DEVICE_SCHEME, JobSpec
from privtune.shared.validation import Strict
from privtune.shared.wording import counted

_ROUNDING = 1e-6  # of a ratio that is computed back from absolute lengths


class Bound(Strict):
    """The allowed range of a mechanism's parameter; with `allowed: false` it may not be set at all."""

    min: float | None = None
    max: float | None = None
    allowed: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Bound:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Budget(Strict):
    """What may be released of each data set, over all jobs. A limit left out has its default. See docs/ledger.md."""

    nats_per_record: float | None = Field(
        None, gt=0, description="Worst-case privacy loss per record, in nats. Refuses noise without such a bound."
    )
    releases: int | None = Field(
        None, ge=0, description="Records drawn. Sending a release again does not count as a new one."
    )
    jobs: int | None = Field(None, ge=0, description="Jobs that draw at least one release.")
    noises: int | None = Field(
        1,
        ge=1,
        description="Noise distributions that the same texts may be drawn under: each is another draw of them. "
        "Default: 1.",
    )
    slope_nats: float | None = Field(
        None,
        gt=0,
        description="Nats that slopes of all zeroth-order jobs together may cost a record: each job draws its own. "
        "Default: the largest epsilon that one job may have.",
    )


def budget_of(policy: Policy | None, *, another_noise: bool) -> Budget:
    """The budget of each data set; without a policy, one noise distribution unless the owner allows another."""
    if policy is None:
        return Budget(noises=None if another_noise else 1)
    return policy.budget.model_copy(update={"slope_nats": policy.budget.slope_nats or policy.slope_epsilon})


class AuditRule(Strict):
    """What attacks may find in a job's own data before any of it is sent: upper ends of 95% intervals.

    With surrogates and no noise, words in clear are clear on purpose: then only `max_replaced` counts.
    """

    max_content_top1: float = Field(
        0.2, ge=0, le=1, description="Fraction of content words that the strongest attack names correctly."
    )
    max_top1: float = Field(0.3, ge=0, le=1, description="The same for all words.")
    max_replaced: float = Field(
        0.02, ge=0, le=1, description="With surrogates: fraction of the replaced words that it names, beyond chance."
    )
    size: Literal["quick", "full"] = Field("quick", description="quick takes minutes, full takes hours.")

    def check(self, spec: JobSpec, local_model: str | None) -> None:
        """Raises InvalidInput for a job that can't be attacked here: a language model's gradients need its top."""
        if spec.task == "causal-lm" and not spec.tail and local_model is None:
            raise InvalidInput(
                "the audit of a language model needs the blocks above the cut for what its gradients reveal: name your "
                "own copy with --local-model (agent.yaml: local_models)",
                param="local_model",
            )


Bounds = dict[str, dict[str, Bound]]


@functools.cache
def _default_bounds() -> Bounds:
    """No mechanism may protect less than its own defaults do."""
    from privtune.device.noise.registry import REGISTRY

    bounds: Bounds = {}
    for name, row in REGISTRY.items():
        defaults = row.params().resolved()
        kinds = {key: {"below": "min", "above": "max"}.get(way) for key, way in row.params.weaker.items()}
        bounds[name] = {
            key: Bound(allowed=False) if kind is None else Bound.model_validate({kind: defaults[key]})
            for key, kind in kinds.items()
        }
    return bounds


def _with_defaults(given: Bounds) -> Bounds:
    """What the owner gives, and the default of all that is left out; a parameter that is listed may be set."""
    merged = {name: dict(bounds) for name, bounds in _default_bounds().items()}
    for name, bounds in given.items():
        mine = merged.setdefault(name, {})
        for key, bound in bounds.items():
            default = mine.get(key, Bound())
            mine[key] = default.model_copy(update={"allowed": True} | bound.model_dump(exclude_unset=True))
    return merged


class Policy(Strict):
    """The `policy` section of agent.yaml, or policy.yaml. What is left out has its default, in `bounds` too."""

    protections: tuple[str, ...] = Field(
        (DEFAULT,),
        description="Protections by name (`privtune protections`): jobs are allowed whose settings protect at least as "
        "one of these does. With none, every job is.",
    )
    mechanisms: tuple[str, ...] = Field(
        (), description="Noise mechanisms that jobs may use even if they reach none of these protections; never `none`."
    )
    languages: tuple[str, ...] = Field(
        ("en",),
        description="Languages that jobs may say the texts are in: under a wrong one, surrogates find less to replace.",
    )
    bounds: Bounds = Field(
        default_factory=dict,
        description="Bounds per mechanism and parameter: min, max, allowed. They hold for what takes effect: "
        "noise_ratio is that of the token that gets least noise, however a job sets it. Where only `mechanisms` allows "
        "a job, nothing may protect less than the mechanism's own defaults unless it is listed here.",
    )
    allow_shared_labels: bool = Field(False, description="Labels may go to the cloud.")
    gradients: Literal["any", "no-text", "none"] = Field(
        "no-text",
        description="Gradients that may go to the cloud: any; no-text: all but a language model's, which name its "
        "text, unless `names` is allowed and the job replaces what identifies; none. A job whose gradients may not "
        "leave needs a tail, which trains on the device.",
    )
    max_label_epsilon: float | None = Field(
        None,
        gt=0,
        description="Jobs must train on randomised labels with at most this label_epsilon, in nats; language models "
        "can't. By default, labels need not be randomised.",
    )
    max_slope_epsilon: float = Field(
        8.0,
        gt=0,
        description="Largest zeroth_order.epsilon of a job; max_label_epsilon bounds it too.",
    )
    max_slope_delta: float = Field(
        1e-5, gt=0, lt=1, description="Largest zeroth_order.delta of a job: without a bound, its epsilon says nothing."
    )
    models: tuple[str, ...] = Field(("*",), description="Names or patterns of the models that jobs may use.")
    datasets: tuple[str, ...] = Field(("*",), description="Names or patterns of the data sets that jobs may use.")
    budget: Budget = Field(default_factory=Budget, description="Limits for each data set.")
    audit: AuditRule | None = Field(
        None, description="Attack every job's data before it is sent. By default, no job is audited."
    )
    share_figures: bool = Field(
        False,
        description="Each job's loss, its figures on held-out records, its privacy statement and the audit's verdict "
        "may go to the cloud, for its dashboard. They tell of labels and texts, without a bound.",
    )
    spot_checks: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of what the cloud computes that this device computes as well, where it has its own copy of "
        "the model (local_models).",
    )
    max_epochs: int = Field(50, ge=1, description="Passes over the data that a job may ask for.")

    @model_validator(mode="after")
    def _known_mechanisms(self) -> Policy:
        from privtune.device.noise.registry import entry

        for name in (*self.mechanisms, *self.bounds):
            try:
                row = entry(name)
            except InvalidInput as error:
                raise ValueError(error.message) from None
            for parameter in self.bounds.get(name, ()):
                if parameter not in row.params.model_fields:
                    known = ", ".join(row.params.model_fields) or "none"
                    raise ValueError(f"bounds: {name} has no parameter '{parameter}'; it has: {known}")
        return self

    @field_validator("protections")
    @classmethod
    def _known_protections(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in RANK]
        if unknown:
            raise ValueError(f"there is no protection '{unknown[0]}'; there are: {', '.join(RANK)}")
        return names

    def check(self, spec: JobSpec) -> None:
        """Raises PolicyRefused with the reason, or InvalidInput when the mechanism's settings are wrong."""
        if not any(fnmatchcase(spec.model, pattern) for pattern in self.models):
            raise PolicyRefused(f"The device's policy does not allow the model {spec.model}.")
        for handle in (spec.training_file, spec.validation_file or spec.training_file):
            name = handle.removeprefix(DEVICE_SCHEME)
            if not any(fnmatchcase(name, pattern) for pattern in self.datasets):
                raise PolicyRefused(f"The device's policy does not allow the data set {name}.")
        if spec.labels == "shared" and not self.allow_shared_labels:
            raise PolicyRefused("The device's policy keeps labels here: labels 'shared' is not allowed.")
        self._check_labels(spec)
        if spec.train.epochs > self.max_epochs:
            raise PolicyRefused(
                f"The job asks for {counted(spec.train.epochs, 'epoch')}; the device allows {self.max_epochs}."
            )
        self._check_mechanism(spec)

    @property
    def slope_epsilon(self) -> float:
        """Largest zeroth_order.epsilon of a job."""
        return min(self.max_slope_epsilon, self.max_label_epsilon or self.max_slope_epsilon)

    def _check_labels(self, spec: JobSpec) -> None:
        most = self.max_label_epsilon
        slopes, allowed = spec.zeroth_order.epsilon, self.slope_epsilon
        if slopes is not None and slopes > allowed:
            raise PolicyRefused(f"zeroth_order.epsilon {slopes:g} is above the {allowed:g} that the device allows.")
        delta = spec.zeroth_order.delta
        if slopes is not None and delta > self.max_slope_delta:
            raise PolicyRefused(
                f"zeroth_order.delta {delta:g} is above the {self.max_slope_delta:g} that the device allows."
            )
        if not spec.gradients_leave:
            return  # labels are used on the device alone
        if self.gradients == "none":
            raise PolicyRefused(
                "The device's policy lets no gradient leave: the job needs a tail, which trains on the device "
                "(--tail 2), or a classifier zeroth_order (--zeroth-order-epsilon 8)."
            )
        named = not (self._allows("names") and replaces_enough(spec))
        if self.gradients == "no-text" and spec.task == "causal-lm" and named:
            raise PolicyRefused(
                "The device's policy keeps a language model's gradients here, because they name its text whatever the "
                "noise: the job needs a tail, which trains on the device (--tail 4), or where the policy allows "
                "`names`, surrogates."
            )
        if most is None:
            return
        if spec.task == "causal-lm":
            raise PolicyRefused(
                "The device's policy requires randomised labels, and a language model's labels are its text."
            )
        if spec.label_epsilon is None:
            raise PolicyRefused(f"The device's policy requires randomised labels: label_epsilon of at most {most:g}.")
        if spec.label_epsilon > most:
            raise PolicyRefused(f"label_epsilon {spec.label_epsilon:g} is above the {most:g} that the device allows.")

    def _check_mechanism(self, spec: JobSpec) -> None:
        from privtune.device.noise.registry import validate

        name = spec.mechanism.name
        settings = validate(spec.mechanism)
        if spec.surrogates.on and spec.surrogates.language not in self.languages:
            raise PolicyRefused(
                f"The device's policy does not allow texts in '{spec.surrogates.language}'; languages: "
                f"{', '.join(self.languages)}."
            )
        for parameter, bound in self._bounds_of(spec).items():
            if not bound.allowed and getattr(settings, parameter) != type(settings).model_fields[parameter].default:
                raise PolicyRefused(f"The device's policy does not allow {name} with {parameter} set.")
        self.check_resolved(spec, settings.resolved())

    def _allows(self, name: str) -> bool:
        """Whether jobs need protect no better than this protection."""
        return any(RANK[one] <= RANK[name] for one in self.protections)

    def _bounds_of(self, spec: JobSpec) -> Mapping[str, Bound]:
        """What holds for the job's mechanism. Raises PolicyRefused for a job that nothing allows."""
        name = spec.mechanism.name
        if any(reaches(spec, one) for one in self.protections):
            return self.bounds.get(name, {})
        if name != "none" and name in self.mechanisms:
            return _with_defaults(self.bounds)[name]
        rank = f", those from rank {spec.surrogates.rank:,}" if spec.surrogates.on else ""
        others = f" or the mechanisms {', '.join(self.mechanisms)}" if self.mechanisms else ""
        raise PolicyRefused(
            f"The device's policy allows the protections {', '.join(self.protections) or '(none of them)'} and "
            f"stronger{others}; this job has mechanism {spec.mechanism.name}, cut {spec.cut}, tail {spec.tail} and "
            f"replaces {spec.surrogates.replace}{rank}."
        )

    def check_resolved(self, spec: JobSpec, resolved: Mapping[str, object]) -> None:
        """Raises PolicyRefused where what takes effect is outside the bounds. resolved: as in `Params.resolved`."""
        for parameter, bound in self._bounds_of(spec).items():
            _check_bound(spec.mechanism.name, parameter, resolved.get(parameter), bound)


def _check_bound(mechanism: str, parameter: str, value: object, bound: Bound) -> None:
    if not isinstance(value, int | float):
        return
    if bound.max is not None and value > bound.max * (1 + _ROUNDING):
        raise PolicyRefused(f"{mechanism}: {parameter} {value:g} is above the {bound.max:g} that the device allows.")
    if bound.min is not None and value < bound.min * (1 - _ROUNDING):
        raise PolicyRefused(f"{mechanism}: {parameter} {value:g} is below the {bound.min:g} that the device requires.")
