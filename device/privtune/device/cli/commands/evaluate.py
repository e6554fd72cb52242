"""`privtune evaluate`: how good a tuned model is on held-out records."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.options import (
    DATA,
    ApiKey,
    AsJson,
    CaCert,
    Cloud,
    GrpcAddress,
    Home,
    JobId,
    LocalModel,
    Patience,
    Text2Column,
    TextColumn,
    Threads,
    control_plane,
    home_folder,
    limit_threads,
    run_settings,
)

if TYPE_CHECKING:
    from privtune.device.data.source import DataSource
    from privtune.device.inference.evaluate import Evaluation


def _column(what: str) -> Any:
    return typer.Option(help=f"Column of the {what}.", rich_help_panel=DATA, show_default=False)


@guarded
def evaluate(
    job: JobId,
    data: Annotated[
        str | None,
        typer.Option(help="Held-out records. Default: those that the job was submitted with.", show_default=False),
    ] = None,
    generate: Annotated[
        int, typer.Option(min=0, help="Also let a language model answer so many prompts: ROUGE and BLEU.")
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=32768, help="Longest answer, in tokens.")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many records, drawn at random.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write everything as JSON, the answers too: it is private text.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Records in one message. Default: 16; 4 with a tail.")
    ] = None,
    as_json: AsJson = False,
    text_column: TextColumn = None,
    text2_column: Text2Column = None,
    label_column: Annotated[str | None, _column("label")] = None,
    prompt_column: Annotated[str | None, _column("prompt")] = None,
    completion_column: Annotated[str | None, _column("completion")] = None,
    messages_column: Annotated[str | None, _column("conversations")] = None,
    cloud: Cloud = None,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
    grpc_address: GrpcAddress = None,
    local_model: LocalModel = None,
    patience: Patience = 600.0,
    home: Home = None,
    threads: Threads = None,
) -> None:
    """Score a tuned model on records that it has not seen; they take the same private path, with the same noise.

    \b
    Examples:
      privtune evaluate ftjob-abc123
      privtune evaluate ftjob-abc123 --data test.jsonl --generate 200 --out scores.json
    """
    columns = {
        "text": text_column,
        "text2": text2_column,
        "label": label_column,
        "prompt": prompt_column,
        "completion": completion_column,
        "messages": messages_column,
    }
    source = _source(job, data, columns, limit, home_folder(home))
    from privtune.device.inference.evaluate import evaluate as score

    with control_plane(cloud, api_key, ca_cert) as control:
        settings = run_settings(
            control,
            api_key=api_key,
            ca_cert=ca_cert,
            home=home,
            grpc_address=grpc_address,
            local_model=local_model,
            patience=patience,
        )
    limit_threads(threads)
    found = score(
        job,
        source,
        settings,
        generate=generate,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        say=lambda line: typer.echo(line, err=True),
    )
    if out is not None:
        _write(out, found)
    if as_json:
        typer.echo(json.dumps(summary(found)))
    else:
        _show(found)


def _source(job: str, data: str | None, columns: dict[str, str | None], limit: int | None, home: Path) -> DataSource:
    """The file that was given, or the job's own held-out records."""
    from dataclasses import replace

    from privtune.device.data.records import Columns
    from privtune.device.data.source import DataSource
    from privtune.device.home.run_request import RunRequest
    from privtune.shared.errors import InvalidInput

    if data is not None:
        return DataSource(path=data, columns=Columns(**columns), limit=limit)
    request = RunRequest.load(home, job)
    if request is None or request.validation is None:
        raise InvalidInput("This job has no held-out records here: name some with --data.", param="data")
    # a held-out part is drawn after the limit of the whole: a smaller limit would draw other records
    if limit is not None and request.validation.part == "held-out":
        raise InvalidInput("--limit needs --data here: the job's held-out part is fixed.", param="limit")
    return request.validation if limit is None else replace(request.validation, limit=limit)


def summary(found: Evaluation) -> dict[str, Any]:
    """The figures, without any text of the owner's or the model's."""
    facts = {
        "job": found.job_id,
        "source": found.source,
        "records": found.records,
        "truncated": found.truncated,
        "dropped": found.dropped,
        "metrics": found.metrics,
        "statement": asdict(found.statement),
    }
    if found.written is not None:
        facts["prompts"] = len(found.written.questions)
        facts["prompts_too_long"] = found.written.too_long
        facts["written"] = asdict(found.written.scores)
    return facts


def _write(out: Path, found: Evaluation) -> None:
    from privtune.shared.errors import StorageFull

    answers = []
    if found.written is not None:
        pairs = zip(found.written.questions, found.written.texts, strict=True)
        answers = [asdict(question) | {"text": text} for question, text in pairs]
    try:
        text = json.dumps(summary(found) | {"answers": answers}, indent=1, ensure_ascii=False)
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageFull(f"{out} can't be written: {error.strerror}.") from None


def _show(found: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{found.records:,} records"
    if found.truncated or found.dropped:
        title += f" ({found.truncated:,} cut, {found.dropped:,} left out)"
    if found.written is not None:
        title += f", {len(found.written.texts):,} prompts answered"
        title += f" ({found.written.too_long:,} too long)" if found.written.too_long else ""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    figures = dict(found.metrics)
    if found.written is not None:
        scores = found.written.scores
        figures |= {"rouge1": scores.rouge1, "rouge2": scores.rouge2, "rougeL": scores.rougeL, "bleu": scores.bleu}
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(title, soft_wrap=True)
    console.print(table)
    console.print(f"Noise: {found.statement.text}", soft_wrap=True)
