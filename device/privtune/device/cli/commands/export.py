"""`privtune export`: write a tuned model as files for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from privtune.device.cli.connection import ModelConnection
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson, JobId, limit_threads, to_stderr
from privtune.device.cli.printing import print_result
from privtune.device.cli.signals import ending_in_order


@guarded
@grouped
def export(
    job: JobId,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    connection: ModelConnection,
    format: Annotated[
        Literal["peft", "merged", "gguf"],
        typer.Option(
            help="peft: the adapter alone. merged: a complete model in safetensors files. gguf: a language model for "
            "llama.cpp and compatible tools. The last two need the complete base model here (--local-model).",
        ),
    ] = "peft",
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"],
        typer.Option(
            help="Type of merged and gguf weights. fp32 gives the job's own answers; the others are half the size."
        ),
    ] = "fp32",
    base_name: Annotated[
        str | None,
        typer.Option(
            help="Public name of the base model, like owner/model; for peft also a folder, which an upload refuses. "
            "Default: its hub id where one is known, else its name in the job."
        ),
    ] = None,
    label_names: Annotated[
        bool, typer.Option(help="Write the names of your classes into the model, instead of LABEL_0, LABEL_1, ...")
    ] = True,
    with_metrics: Annotated[
        bool,
        typer.Option("--with-metrics", help="Put the accuracy or perplexity on your data on the model card."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a tuned model to a folder: the cloud's adapter, the head that never left this machine, and a model card.

    It loads in plain transformers (and peft). It was trained on your text: share it only with those who may see that.

    \b
    Examples:
      privtune export ftjob-abc123 ./my-adapter
      privtune export ftjob-abc123 ./my-model --format merged --local-model ./base
      privtune export ftjob-abc123 ./my-gguf --format gguf --dtype fp16 --local-model base.gguf
    """
    from privtune.device.export.export_job import ExportOptions, export_job

    options = ExportOptions(
        format=format,
        dtype=dtype,
        base_name=base_name,
        label_names=label_names,
        metrics=with_metrics,
    )
    settings = connection.settings()
    limit_threads(connection.threads)
    with ending_in_order():
        done = export_job(job, folder.expanduser().absolute(), settings, options, say=to_stderr)
    print_result({"job": job, "folder": done, "format": format}, str(done), as_json=as_json)
