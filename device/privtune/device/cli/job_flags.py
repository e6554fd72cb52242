"""The job's fields as options of a command; what they mean: `privtune.device.client.job_options`."""

from __future__ import annotations

import inspect
import types
from functools import cache
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from privtune.device.cli.option_groups import OptionGroup
from privtune.device.cli.options import option
from privtune.device.client.job_options import JOB_OPTIONS, default_of, field_at, flag_of, help_of


class JobOptions(OptionGroup):
    """The options that were given, by name; those that were not are left out.

    names: the options of this group, all by default; a command that takes only some of them derives a class.
    """

    names: ClassVar[tuple[str, ...]] = tuple(JOB_OPTIONS)

    def __init__(self, **values: Any) -> None:
        self.given = {name: value for name, value in values.items() if value is not None and value != []}

    def __getitem__(self, name: str) -> Any:
        """The value that was given, or the job's default."""
        return self.given[name] if name in self.given else default_of(name)

    @classmethod
    def options(cls) -> list[inspect.Parameter]:
        """See `OptionGroup.options`."""
        return [_parameter(name) for name in cls.names]


@cache
def _parameter(name: str) -> inspect.Parameter:
    job_option = JOB_OPTIONS[name]
    field = field_at(job_option.path)
    kind = _type_of(field)
    names = (flag_of(name),) if kind is bool else ()  # without typer's --no-...
    info = option(help_of(field), job_option.panel, *names)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )


def _type_of(field: FieldInfo) -> Any:
    """The type that the option parses: without None, and a list where the job has a tuple."""
    kind: Any = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    return types.GenericAlias(list, get_args(kind)[:1]) if get_origin(kind) is tuple else kind
