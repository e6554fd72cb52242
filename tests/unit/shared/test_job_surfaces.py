"""Every surface shows a job's fields as `JobSpec` has them: the same names, defaults, choices and descriptions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from privtune.cloud.api.requests import CreateJobRequest
from privtune.device.cli import app
from privtune.device.cli.commands.finetune import finetune
from privtune.device.client.job_options import JOB_OPTIONS, help_of
from privtune.shared.job_spec import JobSpec

# Fields without an option of their own name, and why.
NO_OPTION = {
    ("training_file",): "the device makes it from --name",
    ("validation_file",): "the device makes it from --name, if there are held-out records",
    ("num_labels",): "the device counts them",
    ("mechanism", "params"): "--param NAME=VALUE, which each mechanism checks",
}
# OpenAI's own names for fields that are also under `privtune`.
ALIASES = {
    "seed": "privtune.train.seed",
    "n_epochs": "privtune.train.epochs",
    "batch_size": "privtune.train.batch_size",
    "learning_rate_multiplier": "privtune.optim.learning_rate",
}


def leaves(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, (*path, name))
        else:
            yield (*path, name), field


LEAVES = dict(leaves(JobSpec))
COMMAND = typer.main.get_command(app).commands["finetune"]  # type: ignore[attr-defined]
OPTIONS = {option.name: option for option in COMMAND.params if option.param_type_name == "option"}


def choices_of(annotation: Any) -> list[str] | None:
    kinds = (annotation, *get_args(annotation))
    return next((list(get_args(kind)) for kind in kinds if get_origin(kind) is Literal), None)


def test_every_field_has_exactly_one_option_or_a_reason():
    paths = [option.path for option in JOB_OPTIONS.values()]
    assert sorted([*paths, *NO_OPTION]) == sorted(LEAVES)


@pytest.mark.parametrize("name", JOB_OPTIONS)
def test_an_option_is_its_field(name):
    field, option = LEAVES[JOB_OPTIONS[name].path], OPTIONS[name]
    assert option.default is None  # so that JobSpec fills in its own
    assert option.help == help_of(field)
    assert option.help.startswith(field.description)
    parsed = get_args(inspect.signature(finetune).parameters[name].annotation)[0]
    assert choices_of(parsed) == choices_of(field.annotation)
    default = field.get_default(call_default_factory=True)
    if isinstance(default, str | int | float) and default is not False:
        shown = f"{default:g}" if isinstance(default, float) else default
        assert option.help.endswith(f"Default: {shown}.")


def rest_leaves(schema: dict[str, Any], defs: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for name, about in schema["properties"].items():
        inner = [part["$ref"].rpartition("/")[2] for part in [about, *about.get("anyOf", [])] if "$ref" in part]
        if inner:
            yield from rest_leaves(defs[inner[0]], defs, (*path, name))
        else:
            yield (*path, name), about


def test_every_field_is_one_of_a_request_as_the_job_has_it():
    schema = CreateJobRequest.model_json_schema()
    shown = dict(rest_leaves(schema, schema["$defs"]))
    found = {path[1:] if path[0] == "privtune" else path: about for path, about in shown.items()}
    assert len(found) == len(shown)  # no field is both at the top and under `privtune`
    assert set(LEAVES) <= set(found)
    openai = {path[-1] for path in set(found) - set(LEAVES)}
    assert openai == {*ALIASES, "metadata", "type", "integrations"}
    for path, field in LEAVES.items():
        about = found[path]
        assert about["description"] == field.description, path
        if not field.is_required() and path != ("mechanism", "params"):
            default = field.get_default(call_default_factory=True)
            assert about["default"] == (list(default) if isinstance(default, tuple) else default), path
        kinds = [about, *about.get("anyOf", [])]
        assert next((kind["enum"] for kind in kinds if "enum" in kind), None) == choices_of(field.annotation), path


@pytest.mark.parametrize(("alias", "path"), ALIASES.items())
def test_openais_names_say_which_field_they_set(alias, path):
    schema = CreateJobRequest.model_json_schema()
    shown = dict(rest_leaves(schema, schema["$defs"]))
    places = [(alias,), ("hyperparameters", alias), ("method", "supervised", "hyperparameters", alias)]
    found = [shown[place]["description"] for place in places if place in shown]
    assert found
    assert all(f"`{path}`" in description for description in found)
