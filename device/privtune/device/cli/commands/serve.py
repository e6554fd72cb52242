"""`privtune serve`: tuned language models behind an endpoint of OpenAI's API, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from privtune.device.cli.connection import ReleasingConnection
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import limit_threads, option, to_stderr

ENDPOINT = "Endpoint"


@guarded
@grouped
def serve(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Job ids; clients name one as the model.")],
    connection: ReleasingConnection,
    host: Annotated[str, option("Address to listen on. Default: 127.0.0.1.", ENDPOINT)] = "127.0.0.1",
    port: Annotated[
        int, option("Port to listen on. 0: any free port. Default: 8000.", ENDPOINT, min=0, max=65535)
    ] = 8000,
    endpoint_key: Annotated[
        str | None,
        option(
            "Key that clients must present. Without one, every program on this machine may use the endpoint.",
            ENDPOINT,
            envvar="PRIVTUNE_ENDPOINT_KEY",
        ),
    ] = None,
    allow_remote: Annotated[
        bool,
        option(
            "Also listen to other machines, without encryption. Needs a key.",
            ENDPOINT,
            "--allow-remote",
        ),
    ] = False,
) -> None:
    """Serve tuned language models to programs that speak OpenAI's API. Texts stay here; noised vectors go to the cloud.

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
    settings = connection.settings()
    limit_threads(connection.threads)
    run(list(dict.fromkeys(jobs)), settings, exposure, say=to_stderr)
