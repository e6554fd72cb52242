"""The owner's YAML files: `policy.yaml` in the home folder, and how every such file is read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from privtune.device.home.policy import Policy
from privtune.shared.errors import DataInvalid, InvalidInput
from privtune.shared.validation import first_problem

POLICY = "policy.yaml"
Document = TypeVar("Document", bound=BaseModel)


def home_policy(home: Path) -> Policy | None:
    """The device's own policy: `policy.yaml` in its home folder, with the keys of agent.yaml's policy section.

    None without such a file. Raises as `read_mapping` and `validated`.
    """
    path = home / POLICY
    if not path.exists():
        return None
    return validated(path, Policy, read_mapping(path, "`mechanisms:`"), under=("policy",))


def read_mapping(path: Path, example: str) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        path: the file.
        example: a key that it may have, for the message about a file without any.

    Raises:
        DataInvalid: the file can't be read, is not YAML (names the line) or is empty.
        InvalidInput: it holds something other than keys and values.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataInvalid(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataInvalid(f"{path} is not UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise DataInvalid(f"{path}{where}: not valid YAML: {problem}.") from None
    if raw is None:
        raise DataInvalid(f"{path} is empty; it needs at least {example}.")
    if not isinstance(raw, dict):
        raise InvalidInput(f"{path}: keys like {example} are expected, not a {type(raw).__name__}.")
    return raw


def validated(path: Path, kind: type[Document], raw: Mapping[str, Any], *, under: tuple[str, ...] = ()) -> Document:
    """The document `raw` of the file `path`.

    under: keys that messages put before those of `raw`.

    Raises InvalidInput, which names the file and the key, for an unknown key or a wrong value.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problem = first_problem(error.errors())
        key = ".".join(map(str, (*under, *problem.where)))
        if problem.kind == "extra_forbidden":
            known = ", ".join(_known_keys(kind, problem.where))
            raise InvalidInput(f"{path}: unknown key {key}; known here: {known}") from None
        raise InvalidInput(f"{path}: {key}: {problem.text}") from None


def _known_keys(kind: Any, where: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that holds the last key of the path `where`."""
    for part in where[:-1]:
        kind = kind.model_fields[part].annotation if _is_document(kind) else get_args(kind)[-1]
        if not _is_document(kind) and get_origin(kind) is not dict:  # Section | None
            kind = next(one for one in get_args(kind) if _is_document(one))
    return list(kind.model_fields)


def _is_document(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
