"""From the options of `privtune finetune` to a JobSpec; mistakes are told by the option's name."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from privtune.device.noise.registry import validate
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import DEVICE_SCHEME, JobSpec

NO_NOISE = "none"

# option -> where it stands in the JobSpec
PATHS = {
    "model": ("model",),
    "task": ("task",),
    "cut": ("cut",),
    "tail": ("tail",),
    "skip": ("skip",),
    "labels": ("labels",),
    "label_epsilon": ("label_epsilon",),
    "num_labels": ("num_labels",),
    "suffix": ("suffix",),
    "codec": ("codec",),
    "tuning": ("tuning", "method"),
    "lora_rank": ("tuning", "rank"),
    "lora_alpha": ("tuning", "alpha"),
    "lora_dropout": ("tuning", "dropout"),
    "lora_targets": ("tuning", "targets"),
    "gradient_checkpointing": ("tuning", "gradient_checkpointing"),
    "learning_rate": ("optim", "learning_rate"),
    "head_learning_rate": ("optim", "head_learning_rate"),
    "weight_decay": ("optim", "weight_decay"),
    "schedule": ("optim", "schedule"),
    "warmup_ratio": ("optim", "warmup_ratio"),
    "max_grad_norm": ("optim", "max_grad_norm"),
    "epochs": ("train", "epochs"),
    "max_steps": ("train", "max_steps"),
    "batch_size": ("train", "batch_size"),
    "accumulation": ("train", "accumulation"),
    "max_length": ("train", "max_length"),
    "seed": ("train", "seed"),
    "precision": ("train", "precision"),
    "in_flight": ("train", "in_flight"),
    "checkpoint_every": ("train", "checkpoint_every"),
}
_OPTIONS = {path: option for option, path in PATHS.items()}


def build_spec(
    given: Mapping[str, Any], mechanism: Mapping[str, Any], *, name: str | None = None, validated: bool = False
) -> JobSpec:
    """The job of these options; those that are None take JobSpec's defaults.

    Args:
        given: option names of `PATHS` with their values.
        mechanism: from `mechanism_of`.
        name: of the data set in the handle that the cloud sees; None: a random one, which tells nothing.
        validated: the job has held-out records.

    Raises:
        InvalidInput: names the option.
    """
    handle = f"{DEVICE_SCHEME}{name or 'local-' + secrets.token_hex(4)}"
    fields: dict[str, Any] = {"mechanism": dict(mechanism), "training_file": handle}
    if validated:
        fields["validation_file"] = f"{handle}-validation"
    for option, value in given.items():
        if value is None or value == ():
            continue
        *groups, last = PATHS[option]
        place = fields
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    try:
        spec = JobSpec.model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(_explain(error)) from None
    validate(spec.mechanism)
    return spec


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = tuple(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if path[:1] == ("training_file",) or path[:1] == ("validation_file",):
        return "--name: letters, digits, '.', '_' and '-' only, at most 100 of them."
    option = _OPTIONS.get(path) or _OPTIONS.get(path[:2])
    if option is None:
        return message
    return f"--{option.replace('_', '-')} {first['input']!r}: {message}."


def mechanism_of(name: str | None, params: Sequence[str], *, no_noise: bool) -> dict[str, Any]:
    """The mechanism's name and parameters.

    Raises:
        InvalidInput: `none` without --no-noise, both at once with another mechanism, or a --param that is no pair.
    """
    if no_noise and name not in (None, NO_NOISE):
        raise InvalidInput(f"--no-noise and --mechanism {name} contradict each other; give one of them.")
    if name == NO_NOISE and not no_noise:
        raise InvalidInput(
            "--mechanism none sends clean vectors, from which nearly every word can be recovered. Say --no-noise "
            "instead (or as well) if you mean it; leave both out for the default noise."
        )
    if no_noise:
        if params:
            raise InvalidInput("--no-noise takes no --param.")
        return {"name": NO_NOISE}
    chosen: dict[str, Any] = {"params": dict(_pair(param) for param in params)}
    return chosen | ({"name": name} if name else {})


def _pair(text: str) -> tuple[str, float | int | str | bool]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip() or not value.strip():
        raise InvalidInput(f"--param {text!r}: NAME=VALUE is expected, like --param noise_ratio=8.")
    return key.strip(), _typed(value.strip())


def _typed(value: str) -> float | int | str | bool:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
