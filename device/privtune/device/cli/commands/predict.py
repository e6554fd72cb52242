"""`privtune predict`: classify texts with a tuned model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.connection import ReleasingConnection
from privtune.device.cli.data_options import TextColumns
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson, JobId, limit_threads, to_stderr
from privtune.shared.wording import counted

if TYPE_CHECKING:
    from privtune.device.data.record_lines import RecordLines
    from privtune.device.inference.predict import Prediction, Text


@guarded
@grouped
def predict(
    job: JobId,
    columns: TextColumns,
    connection: ReleasingConnection,
    text: Annotated[list[str] | None, typer.Option(help="A text to classify; may be repeated.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A file of texts (.jsonl, .csv, .tsv, .parquet). Needs no labels.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write JSON lines to this file instead of the terminal.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Texts per message to the cloud.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Classify texts with a model tuned here. They take the same private path as in training, with the same noise.

    \b
    Examples:
      privtune predict ftjob-abc123 --text "a charming and often affecting journey"
      privtune predict ftjob-abc123 --data new.csv --out labels.jsonl
    """
    texts, where = _texts(text or [], data, columns)
    from privtune.device.inference.predict import predict as classify
    from privtune.shared.errors import StorageFull

    settings = connection.settings()
    limit_threads(connection.threads)
    found = classify(job, texts, settings, source=data, lines=where, batch_size=batch_size, say=to_stderr)
    if out is None:
        for number, prediction in enumerate(found):
            typer.echo(_json_line(number, prediction) if as_json else _plain_line(prediction, texts[number]))
        return
    try:
        lines = (_json_line(number, prediction) + "\n" for number, prediction in enumerate(found))
        out.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise StorageFull(f"{out} can't be written: {error.strerror}.") from None
    to_stderr(f"{counted(len(found), 'prediction')} written to {out}")


def _texts(given: list[str], data: str | None, columns: TextColumns) -> tuple[list[Text], RecordLines | None]:
    from privtune.shared.errors import InvalidInput

    if bool(given) == bool(data):
        raise InvalidInput("Give either --text (once or more) or --data FILE.", param="text")
    if data is None:
        if any(not one.strip() for one in given):
            raise InvalidInput("--text is empty.", param="text")
        return list(given), None
    from privtune.device.data.record_lines import lines_of
    from privtune.device.data.source import DataSource

    records = DataSource(path=data, columns=columns.columns()).load("classification", labelled=False)
    to_stderr(str(records))
    texts = [record.text if record.text2 is None else (record.text, record.text2) for record in records]
    return texts, lines_of(records)


def _json_line(number: int, prediction: Prediction) -> str:
    facts: dict[str, Any] = {"index": number, "label": prediction.label, "probabilities": prediction.probabilities}
    return json.dumps(facts, ensure_ascii=False)


def _plain_line(prediction: Prediction, text: Text) -> str:
    whole = " | ".join(text) if isinstance(text, tuple) else text
    short = " ".join(whole.split())
    short = short if len(short) <= 72 else short[:71] + "…"
    return f"{prediction.label}  {prediction.probabilities[prediction.label]:.3f}  {short}"
