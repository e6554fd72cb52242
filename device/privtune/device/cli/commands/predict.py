"""`privtune predict`: use a tuned model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.options import (
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
    limit_threads,
    run_settings,
)

if TYPE_CHECKING:
    from privtune.device.inference.predict import Prediction, Text


@guarded
def predict(
    job: JobId,
    text: Annotated[list[str] | None, typer.Option(help="A text to classify; may be repeated.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A file of texts (.jsonl, .csv, .tsv, .parquet); needs no labels.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write JSON lines to this file instead of the terminal.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Texts in one message.")] = 32,
    as_json: AsJson = False,
    text_column: TextColumn = None,
    text2_column: Text2Column = None,
    cloud: Cloud = None,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
    grpc_address: GrpcAddress = None,
    local_model: LocalModel = None,
    patience: Patience = 600.0,
    home: Home = None,
    threads: Threads = None,
) -> None:
    """Classify texts with a model tuned here; they take the same private path, with the same noise.

    \b
    Examples:
      privtune predict ftjob-abc123 --text "a charming and often affecting journey"
      privtune predict ftjob-abc123 --data new.csv --out labels.jsonl
    """
    texts = _texts(text or [], data, text_column, text2_column)
    from privtune.device.inference.predict import predict as classify
    from privtune.shared.errors import StorageFull

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
    found = classify(job, texts, settings, batch_size=batch_size, say=lambda line: typer.echo(line, err=True))
    if out is None:
        for number, prediction in enumerate(found):
            typer.echo(_json_line(number, prediction) if as_json else _plain_line(prediction, texts[number]))
        return
    try:
        lines = (_json_line(number, prediction) + "\n" for number, prediction in enumerate(found))
        out.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise StorageFull(f"{out} can't be written: {error.strerror}.") from None
    typer.echo(f"{len(found):,} predictions written to {out}", err=True)


def _texts(given: list[str], data: str | None, text_column: str | None, text2_column: str | None) -> list[Text]:
    from privtune.shared.errors import InvalidInput

    if bool(given) == bool(data):
        raise InvalidInput("Give either --text (once or more) or --data FILE.", param="text")
    if data is None:
        if any(not one.strip() for one in given):
            raise InvalidInput("--text is empty.", param="text")
        return list(given)
    from privtune.device.data.records import Columns
    from privtune.device.data.source import DataSource

    columns = Columns(text=text_column, text2=text2_column)
    records = DataSource(path=data, columns=columns).load("classification", labelled=False)
    typer.echo(f"{records.source}: {len(records):,} records; columns: {records.columns}", err=True)
    return [record.text if record.text2 is None else (record.text, record.text2) for record in records]


def _json_line(number: int, prediction: Prediction) -> str:
    facts: dict[str, Any] = {"index": number, "label": prediction.label, "probabilities": prediction.probabilities}
    return json.dumps(facts, ensure_ascii=False)


def _plain_line(prediction: Prediction, text: Text) -> str:
    shown = " | ".join(text) if isinstance(text, tuple) else text
    short = " ".join(shown.split())
    short = short if len(short) <= 72 else short[:71] + "…"
    return f"{prediction.label}  {prediction.probabilities[prediction.label]:.3f}  {short}"
