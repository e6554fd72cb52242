"""The options of the noise mechanism: its name, its parameters, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from privtune.device.cli.options import NOISE, option
from privtune.shared.errors import InvalidInput

NO_NOISE = "none"

Params = Annotated[
    list[str] | None, option("NAME=VALUE: a parameter of the mechanism; may be repeated.", NOISE, "--param")
]
NoNoise = Annotated[
    bool, option("Send clean vectors, from which nearly every word can be recovered.", NOISE, "--no-noise")
]


def mechanism_of(name: str | None, params: Sequence[str], *, no_noise: bool) -> dict[str, Any]:
    """The mechanism's name and parameters, as a job has them.

    Raises:
        InvalidInput: `none` without --no-noise, --no-noise with another mechanism, or a --param that is no pair.
    """
    if no_noise and name not in (None, NO_NOISE):
        raise InvalidInput(f"--no-noise and --mechanism {name} contradict each other; give one of them.")
    if name == NO_NOISE and not no_noise:
        raise InvalidInput(
            "--mechanism none sends clean vectors, from which nearly every word can be recovered. Say --no-noise "
            "instead (or as well) if you mean it. Leave both out for the default noise."
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
