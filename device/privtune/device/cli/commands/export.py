"""`privtune export`: take a tuned model home as files for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.interrupt import ending_in_order
from privtune.device.cli.options import (
    ApiKey,
    CaCert,
    Cloud,
    GrpcAddress,
    Home,
    JobId,
    LocalModel,
    Patience,
    control_plane,
    run_settings,
)


@guarded
def export(
    job: JobId,
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="A new or empty folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="The same as DIR.")] = None,
    format: Annotated[
        Literal["peft", "merged", "gguf"],
        typer.Option(
            help="peft: the adapter alone. merged: a whole model in safetensors. gguf: a language model for "
            "llama.cpp and its kin. The last two need the whole base here (--local-model).",
        ),
    ] = "peft",
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"],
        typer.Option(help="Of merged and gguf. fp32 gives the job's own answers; the others are half as large."),
    ] = "fp32",
    base_name: Annotated[
        str | None,
        typer.Option(help="What the base is called in public, like owner/model. Default: its name in the job."),
    ] = None,
    label_names: Annotated[
        bool, typer.Option(help="Write the names of your classes into the model; without: LABEL_0, LABEL_1, ...")
    ] = True,
    with_metrics: Annotated[
        bool,
        typer.Option("--with-metrics", help="Put the accuracy or perplexity on your data on the model card."),
    ] = False,
    cloud: Cloud = None,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
    grpc_address: GrpcAddress = None,
    local_model: LocalModel = None,
    patience: Patience = 600.0,
    home: Home = None,
) -> None:
    """Write a tuned model as a folder: the cloud's adapter with the head that never left this machine, and a card.

    It loads in plain transformers (and peft). It was learned from your text: share it as you would the text.

    \b
    Examples:
      privtune export ftjob-abc123 ./my-adapter
      privtune export ftjob-abc123 ./my-model --format merged --local-model ./base
      privtune export ftjob-abc123 ./my-gguf --format gguf --dtype fp16 --local-model base.gguf
    """
    from privtune.shared.errors import InvalidInput

    if (folder is None) == (out is None):
        raise InvalidInput("Name one folder to write: privtune export JOB DIR.", param="folder")
    target = (folder or out or Path()).expanduser().absolute()
    from privtune.device.export.export_job import ExportOptions, export_job

    options = ExportOptions(
        format=format,
        dtype=dtype,
        base_name=base_name,
        label_names=label_names,
        metrics=with_metrics,
    )
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
    with ending_in_order():
        print(export_job(job, target, settings, options, say=lambda line: typer.echo(line, err=True)))
