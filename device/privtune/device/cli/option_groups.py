"""Groups of options that several commands take: a command declares one parameter, its users see each option."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, ParamSpec, TypeVar, cast, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")


class OptionGroup:
    """Base of the groups. A group is a frozen, keyword-only dataclass whose fields are annotated as typer options."""

    @classmethod
    def options(cls) -> list[inspect.Parameter]:
        """One keyword parameter per option, in the order in which `--help` lists them."""
        hints = get_type_hints(cls, include_extras=True)
        return [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(cast(Any, cls))
        ]


def grouped(command: Callable[P, R]) -> Callable[P, R]:
    """Give the command the options of each parameter that is an `OptionGroup`, and call it with the filled group."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, type[OptionGroup]] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, OptionGroup)
    }
    options: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        options += groups[name].options() if name in groups else own

    @functools.wraps(command)
    def inside(**given: Any) -> R:
        filled = {
            name: group(**{option.name: given.pop(option.name) for option in group.options()})
            for name, group in groups.items()
        }
        return cast(Callable[..., R], command)(**filled, **given)

    seen = cast(Any, inside)  # typer reads both
    seen.__signature__ = signature.replace(parameters=options)
    seen.__annotations__ = {option.name: option.annotation for option in options}
    return cast(Callable[P, R], inside)
