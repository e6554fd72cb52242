"""The options of how a job protects its text: a protection by name, and parameters of its mechanism."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from privtune.device.cli.options import NOISE, option
from privtune.device.protections.protection import DEFAULT, PROTECTIONS
from privtune.shared.errors import InvalidInput

Params = Annotated[
    list[str] | None, option("NAME=VALUE: a parameter of the mechanism; may be repeated.", NOISE, "--param")
]
_NAMES = " ".join(f"{one.name}: {one.summary}." for one in reversed(list(PROTECTIONS.values())))


def protect_option(default: str = DEFAULT) -> object:
    """`--protect NAME`, with each protection in its help."""
    return option(
        f"How the text is protected: settings by name, each of which an option of its own overrides. {_NAMES} "
        f"`privtune protections` compares them. Default: {default}.",
        NOISE,
        "--protect",
        metavar="NAME",
        autocompletion=lambda: list(PROTECTIONS),
    )


Protect = Annotated[str | None, protect_option()]


def params_of(params: Sequence[str]) -> dict[str, float | int | str | bool]:
    """Parameters of a mechanism, as a job has them. Raises InvalidInput for one that is no pair."""
    return dict(_pair(param) for param in params)


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
