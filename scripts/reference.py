"""Reference pages made from the code itself: commands, REST routes, settings, errors; for `scripts/build_site.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import typer
from pydantic import BaseModel

INTRO = "Generated from the code by `scripts/reference.py`."


def pages() -> dict[str, str]:
    """The text of each page, by its file name."""
    made: dict[str, Callable[[], str]] = {
        "privtune.md": lambda: commands("privtune", "device"),
        "privtune-cloud.md": lambda: commands("privtune-cloud", "cloud"),
        "rest.md": rest,
        "settings.md": settings,
        "errors.md": errors,
    }
    return {name: make() for name, make in made.items()}


def commands(program: str, side: str) -> str:
    """Every command of a program with its arguments and options."""
    from importlib import import_module

    group = typer.main.get_command(import_module(f"privtune.{side}.cli").app)
    lines = [f"# {program}", "", f"For whoever types or scripts `{program}`: every command and option. {INTRO}"]
    for words, command in _commands(group, ()):
        lines += ["", f"## {' '.join((program, *words))}", "", _text(command.help or "")]
        options = [one for one in command.params if not getattr(one, "hidden", False)]
        rows = [
            (
                "`" + ", ".join(one.opts if one.param_type_name == "option" else [one.name.upper()]) + "`",
                f"`{one.envvar}`" if one.envvar else "",
                _text(getattr(one, "help", None) or ""),
            )
            for one in options
        ]
        lines += ["", *_table(("option", "variable", "what it does"), rows)]
    return "\n".join(lines) + "\n"


def _commands(group: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, (*words, name))
        else:
            yield (*words, name), command


def rest() -> str:
    """Every route of the control plane, from its OpenAPI document."""
    document = openapi()
    lines = ["# REST", "", f"For programs that start and watch jobs. A cloud shows the same at `/docs`. {INTRO}"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            about = f"{operation['summary']}. {operation.get('description', '')}"
            lines += ["", f"## {method.upper()} {path}", "", about]
            if body := _body(operation):
                lines += ["", *_table(("field", "type", "what it is"), _fields(document, body))]
            answers = [(f"`{code}`", answer["description"]) for code, answer in sorted(operation["responses"].items())]
            lines += ["", *_table(("status", "means"), answers)]
    return "\n".join(lines) + "\n"


def openapi() -> Any:
    """The control plane's OpenAPI document, of a cloud without models."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from privtune.cloud.api.app import create_app
    from privtune.cloud.catalog import Catalog
    from privtune.cloud.server.plane import open_plane
    from privtune.cloud.settings import Settings

    with TemporaryDirectory() as folder:
        made = Settings(data_folder=Path(folder))
        with open_plane(made, Catalog()) as plane:
            return create_app(plane.jobs, plane.keys, plane.devices, plane.teachings, made).openapi()


def _body(operation: Any) -> str:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]


def _fields(document: Any, name: str) -> list[tuple[str, ...]]:
    properties = document["components"]["schemas"][name].get("properties", {})
    return [
        (f"`{field}`", _kind(schema), _text(schema.get("description", schema.get("title", ""))))
        for field, schema in properties.items()
    ]


def _kind(schema: Any) -> str:
    kinds = schema.get("anyOf", [schema])
    return " or ".join(str(one.get("type") or one.get("$ref", "").rpartition("/")[2]) for one in kinds)


def settings() -> str:
    """Keys of a job's description, of the agent's file and policy, and of a cloud."""
    from privtune.cloud.settings import Settings
    from privtune.device.agent.agent_config import AgentConfig
    from privtune.shared.job_spec import JobSpec

    lines = ["# Settings", "", f"For whoever writes a job, an `agent.yaml` or a policy: every key. {INTRO}"]
    lines += [
        "",
        "`privtune.yaml` has options of [privtune](privtune.md) as keys: those of every command at its top, those",
    ]
    lines += ["of one below that command's name."]
    for title, model in (
        ("A job", JobSpec),
        ("agent.yaml, with the policy", AgentConfig),
        ("A cloud (options of `privtune-cloud serve`)", Settings),
    ):
        lines += ["", f"## {title}", "", *_table(("key", "type", "default", "what it is"), list(_keys(model, "")))]
    return "\n".join(lines) + "\n"


def _keys(model: type[BaseModel], above: str) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{above}{name}.")
            continue
        named = isinstance(kind, type) and not get_args(kind)
        shown = kind.__name__ if named else re.sub(r"\b(?:typing|pathlib|privtune[\w.]*)\.", "", str(kind))
        default = "" if field.is_required() else repr(field.get_default(call_default_factory=True))
        yield f"`{above}{name}`", f"`{shown}`", f"`{default}`" if default else "", _text(field.description or "")


def errors() -> str:
    """The error table: what a person, a REST client and a gRPC client get."""
    from privtune.shared.errors import PrivTuneError, all_errors

    lines = ["# Errors and exit codes", "", f"For whoever handles an error in a program. {INTRO} What a person does"]
    lines += ["about each: [exit codes](../exit-codes.md), [common failures](../failures.md).", ""]
    rows = [
        (f"`{kind.reason}`", str(kind.exit_code), str(kind.http_status), f"`{kind.grpc_status}`", _text(kind.help))
        for kind in (PrivTuneError, *all_errors())
    ]
    rows = sorted(set(rows), key=lambda row: int(row[1]))
    return "\n".join([*lines, *_table(("reason", "exit code", "REST", "gRPC", "what to do"), rows)]) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (list(head), ["---"] * len(head), *cells)]


def _text(text: str) -> str:
    """One paragraph: a table's cell, or the first lines of a command's help."""
    return " ".join(re.sub(r"\n\s*\n.*", "", text.replace("\b", "").strip(), flags=re.DOTALL).split())
