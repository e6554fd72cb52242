"""Validated documents: models that accept no unknown field, and the first problem in one that is wrong.

Every surface words a problem alike: REST, command line, YAML files and mechanisms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Strict(BaseModel):
    """A frozen model that accepts no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Typed(BaseModel):
    """A model that takes no text and no truth value for a number; 3.0 is an integer, as in JSON Schema."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {
            name: whole(value) if name in fields and _takes_integers(fields[name].annotation) else value
            for name, value in values.items()
        }


def _takes_integers(annotation: Any) -> bool:
    return annotation is int or any(map(_takes_integers, get_args(annotation)))


def whole(value: Any) -> Any:
    """3.0 as 3; any other value as it is."""
    exact = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if exact else value


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem of a validated document.

    kind: pydantic's name of the problem, like `extra_forbidden`.
    where: path of the field from the document's root, empty for the document as a whole.
    text: what is wrong, starting in lower case, without a full stop.
    """

    kind: str
    where: tuple[int | str, ...]
    text: str

    @property
    def field(self) -> str:
        """The dotted path; empty for the document as a whole."""
        return ".".join(map(str, self.where))

    @property
    def sentence(self) -> str:
        """`field: text`, without a full stop; the field once if the text begins with it."""
        return self.text if not self.field or self.text.startswith(self.field) else f"{self.field}: {self.text}"


def first_problem(errors: Sequence[Any]) -> Problem:
    """The first of pydantic's `error.errors()`."""
    first = errors[0]
    text = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    if first["type"] != "value_error":  # our own messages begin as they mean to
        text = text[:1].lower() + text[1:]
    if first["type"] == "model_type":  # pydantic names the class, which no user knows
        text = "fields by name are expected, like {name: value}"
    return Problem(kind=first["type"], where=tuple(first["loc"]), text=text)


def half_character(text: str) -> str | None:
    """What is wrong with a text that has half of a character; None: nothing."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a character (U+{ord(text[error.start]):04X}, character {error.start + 1})"
    return None
