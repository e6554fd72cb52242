"""`privtune evaluate`: how good a tuned model is on held-out records."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.connection import ReleasingConnection
from privtune.device.cli.data_options import RecordColumns
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson, JobId, limit_threads, to_stderr
from privtune.device.cli.printing import print_table
from privtune.shared.wording import counted

if TYPE_CHECKING:
    from privtune.device.data.source import DataSource
    from privtune.device.inference.evaluate import Evaluation


@guarded
@grouped
def evaluate(
    job: JobId,
    columns: RecordColumns,
    connection: ReleasingConnection,
    data: Annotated[
        str | None,
        typer.Option(help="Held-out records. Default: those that the job was submitted with.", show_default=False),
    ] = None,
    generate: Annotated[
        int, typer.Option(min=0, help="Also answer this many prompts with a language model, scored by ROUGE and BLEU.")
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=32768, help="Maximum length of an answer, in tokens.")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most this many records, drawn at random.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write all results as JSON to this file, answers included: it is private text.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Records per message to the cloud. Default: 16; 4 with a tail."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on records it has not seen. They take the same private path as in training, with the same noise.

    \b
    Examples:
      privtune evaluate ftjob-abc123
      privtune evaluate ftjob-abc123 --data test.jsonl --generate 200 --out scores.json
    """
    source = _source(job, data, columns, limit, connection.folder)
    from privtune.device.inference.evaluate import evaluate as score

    settings = connection.settings()
    limit_threads(connection.threads)
    found = score(
        job,
        source,
        settings,
        generate=generate,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        say=to_stderr,
    )
    if out is not None:
        _write(out, found)
    if as_json:
        typer.echo(json.dumps(summary(found)))
    else:
        _show(found)


def _source(job: str, data: str | None, columns: RecordColumns, limit: int | None, home: Path) -> DataSource:
    """The file that was given, or the job's own held-out records."""
    from privtune.device.client.job_model import held_out_of
    from privtune.device.data.source import DataSource

    if data is not None:
        return DataSource(path=data, columns=columns.columns(), limit=limit)
    return held_out_of(job, home, limit)


def summary(found: Evaluation) -> dict[str, Any]:
    """The figures, without any text from the owner or the model."""
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
    title = counted(found.records, "record")
    if found.truncated or found.dropped:
        title += f" ({found.truncated:,} truncated, {found.dropped:,} left out)"
    if found.written is not None:
        title += f", {counted(len(found.written.texts), 'prompt')} answered"
        title += f" ({found.written.too_long:,} too long)" if found.written.too_long else ""
    figures = dict(found.metrics)
    if found.written is not None:
        scores = found.written.scores
        figures |= {"rouge1": scores.rouge1, "rouge2": scores.rouge2, "rougeL": scores.rougeL, "bleu": scores.bleu}
    typer.echo(title)
    print_table([(name, f"{value:.4g}") for name, value in figures.items()], numbers=(1,))
    typer.echo(f"Privacy: {found.statement.text}")
