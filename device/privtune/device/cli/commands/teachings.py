"""`privtune teachings ...`: let the cloud teach this device's blocks on public text; nothing of yours is used."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from privtune.device.cli.connection import CloudOptions
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson, Home, JobId, home_folder
from privtune.device.cli.printing import print_facts, print_result, print_table
from privtune.shared.teaching_spec import ABOUT_SETTINGS, TeachingSpec, teaching_of

app = typer.Typer(no_args_is_help=True, help="Let the cloud teach this device's blocks on public text.")

HEADINGS = ("TEACHING", "STATUS", "STEP", "MODEL", "CUT", "TAIL", "CORPUS", "REASON")
_ENDED = ("succeeded", "failed", "cancelled")
_FOLLOW_S = 2.0
TeachingId = Annotated[str, typer.Argument(help="The teaching's id.", show_default=False)]


def _about(name: str) -> Any:
    field = TeachingSpec.model_fields[name]
    known = field.is_required() or field.default is None
    text = f"{field.description}" if known else f"{field.description} Default: {field.default}."
    return typer.Option(help=text, show_default=False)


@app.command()
@guarded
@grouped
def start(
    connection: CloudOptions,
    model: Annotated[str, _about("model")],
    corpus: Annotated[str, _about("corpus")],
    cut: Annotated[int | None, _about("cut")] = None,
    tail: Annotated[int | None, _about("tail")] = None,
    task: Annotated[str | None, _about("task")] = None,
    text_column: Annotated[str | None, _about("text_column")] = None,
    label_column: Annotated[str | None, _about("label_column")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help=ABOUT_SETTINGS)] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask the cloud to teach this device's blocks on public text that the cloud has; your records are not needed.

    \b
    Example:
      privtune teachings start --model mpnet --corpus reviews --cut 2 --label-column label --follow
      privtune finetune --model mpnet --data mine.csv --protect words --taught auto
    """
    from privtune.device.link.teaching_calls import create_teaching

    named = {"model": model, "corpus": corpus, "cut": cut, "tail": tail, "task": task}
    spec = teaching_of(named | {"text_column": text_column, "label_column": label_column}, settings or [])
    with connection.control() as control:
        teaching = create_teaching(control, spec)
        if follow:
            teaching = _followed(control, teaching["id"])
    _print(teaching, as_json=as_json)


@app.command("list")
@guarded
@grouped
def list_yours(
    connection: CloudOptions,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List your teachings, newest first."""
    from privtune.device.link.teaching_calls import list_teachings

    with connection.control() as control:
        found = list_teachings(control, limit)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    elif found:
        print_table([_row(one) for one in found], HEADINGS)
    else:
        typer.echo("No teachings.")


@app.command()
@guarded
@grouped
def show(
    teaching: TeachingId,
    connection: CloudOptions,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one: its progress and, at the end, its card (text, settings, distances, seconds)."""
    from privtune.device.link.teaching_calls import get_teaching

    with connection.control() as control:
        _print(_followed(control, teaching) if follow else get_teaching(control, teaching), as_json=as_json)


@app.command()
@guarded
@grouped
def cancel(teaching: TeachingId, connection: CloudOptions, as_json: AsJson = False) -> None:
    """End one after its present step."""
    from privtune.device.link.teaching_calls import cancel_teaching

    with connection.control() as control:
        _print(cancel_teaching(control, teaching), as_json=as_json)


@app.command()
@guarded
@grouped
def delete(teaching: TeachingId, connection: CloudOptions, as_json: AsJson = False) -> None:
    """Delete an ended one from the cloud, which keeps a limited number; jobs that began with it have their own copy."""
    from privtune.device.link.teaching_calls import delete_teaching

    with connection.control() as control:
        delete_teaching(control, teaching)
    print_result({"id": teaching, "deleted": True}, f"deleted {teaching}", as_json=as_json)


@app.command()
@guarded
@grouped
def corpora(connection: CloudOptions, as_json: AsJson = False) -> None:
    """List the public texts that the cloud can teach with."""
    from privtune.device.link.teaching_calls import list_corpora

    with connection.control() as control:
        names = list_corpora(control)
    line = "\n".join(names) or "None. The operator adds one: privtune-cloud serve --corpus NAME=FILE"
    print_result({"corpora": names}, line, as_json=as_json)


@app.command()
@guarded
def check(
    job: JobId,
    text: Annotated[str, typer.Option(help="File of public text like your own.", show_default=False)],
    local_model: Annotated[str, typer.Option(help="Your own copy of the whole model.", show_default=False)],
    text_column: Annotated[str | None, typer.Option(help="Column with the text.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Read at most this many texts, drawn at random.")] = 500,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Measure a job's taught blocks against your own copy of the model, on public text. Nothing is sent.

    Blocks that were taught well are nearer to the model than untaught ones, and about as near as the teaching's card
    says. What else they were taught, no measurement shows: docs/teach-down.md.
    """
    from privtune.device.data.records import Columns
    from privtune.device.data.source import DataSource
    from privtune.device.home.job_folder import JobFolder
    from privtune.device.home.paths import check_job_id
    from privtune.device.model.bottom import taught_folder
    from privtune.device.model.taught_distance import taught_distance
    from privtune.shared.errors import JobConflict

    folder = home_folder(home)
    state = JobFolder(folder, check_job_id(job)).load()
    if not state.taught_sha256:
        raise JobConflict(f"Job {job} did not begin with taught blocks.")
    source = DataSource(path=text, columns=Columns(text=text_column), limit=limit)
    texts = [record.text for record in source.load("classification", labelled=False)]
    package = taught_folder(folder, state.taught_sha256)
    found = taught_distance(package, state.spec, local_model, texts, state.label_names)
    facts = {"texts": found.texts, "package": state.taught_sha256}
    if as_json:
        typer.echo(json.dumps(facts | {"untaught": found.untaught, "taught": found.taught}))
    else:
        distances = {"untaught": found.untaught, "taught": found.taught}
        print_facts({f"distance {blocks}": f"{value:.4f}" for blocks, value in distances.items()} | facts)
    if found.taught >= found.untaught:
        raise JobConflict(
            "The taught blocks are no nearer to your copy of the model than untaught ones. Do not use them."
        )


def _followed(control: Any, teaching_id: str) -> dict[str, Any]:
    """The teaching once it has ended; a line on stderr for each stage that begins and each tenth of it."""
    from privtune.device.link.teaching_calls import get_teaching

    said = ""
    while True:
        teaching = get_teaching(control, teaching_id)
        if teaching["status"] in _ENDED:
            return teaching
        line = f"{teaching['status']} {_step(teaching)}"
        if line != said:
            typer.echo(line, err=True)
            said = line
        time.sleep(_FOLLOW_S)


def _print(teaching: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(teaching, indent=1))
        return
    facts = dict(zip(HEADINGS, _row(teaching), strict=True))
    card = teaching.get("card") or {}
    print_facts(
        {name.lower(): value for name, value in facts.items()}
        | {f"card {name}": json.dumps(value) for name, value in card.items()}
    )


def _row(teaching: dict[str, Any]) -> tuple[str, ...]:
    spec = teaching.get("spec") or {}
    named = (str(spec.get(name, "")) for name in ("model", "cut", "tail", "corpus"))
    return (teaching["id"], teaching["status"], _step(teaching), *named, str(teaching.get("reason", "")))


def _step(teaching: dict[str, Any]) -> str:
    progress = teaching.get("progress") or {}
    if not progress.get("stage"):
        return ""
    return f"{progress['stage']} {progress.get('step', 0)}/{progress.get('steps', 0)}"
