"""`privtune serve`: the tuned model behind an endpoint in OpenAI's shape, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.options import (
    ApiKey,
    CaCert,
    Cloud,
    GrpcAddress,
    Home,
    LocalModel,
    Patience,
    Threads,
    control_plane,
    limit_threads,
    run_settings,
)

ENDPOINT = "Endpoint"


@guarded
def serve(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Job ids; clients name one as the model.")],
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=ENDPOINT)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, rich_help_panel=ENDPOINT, help="0: any free one.")] = 8000,
    endpoint_key: Annotated[
        str | None,
        typer.Option(
            envvar="PRIVTUNE_ENDPOINT_KEY",
            help="Key that clients must show. Without one, every program on this machine may ask.",
            rich_help_panel=ENDPOINT,
            show_default=False,
        ),
    ] = None,
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote", help="Listen beyond this machine, in clear text; needs a key.", rich_help_panel=ENDPOINT
        ),
    ] = False,
    cloud: Cloud = None,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
    grpc_address: GrpcAddress = None,
    local_model: LocalModel = None,
    patience: Patience = 600.0,
    home: Home = None,
    threads: Threads = None,
) -> None:
    """Let programs use a tuned language model as if it were OpenAI's; texts stay here, noised vectors go to the cloud.

    \b
    Example:
      privtune serve ftjob-abc123
      OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=unused your-tool --model ftjob-abc123
    """
    from privtune.shared.errors import missing_package

    try:
        from privtune.device.endpoint.endpoint_server import Exposure
        from privtune.device.endpoint.endpoint_server import serve as run
    except ModuleNotFoundError as error:
        raise missing_package(error, "serve") or error from error

    exposure = Exposure(host=host, port=port, key=endpoint_key or None, allow_remote=allow_remote)
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
    run(list(dict.fromkeys(jobs)), settings, exposure, say=lambda line: typer.echo(line, err=True))
