"""Options that several commands share. Light: everything heavy is imported inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from privtune.device.link.rest import ControlPlane
    from privtune.device.session.run_settings import RunSettings

CONNECTION = "Connection"
DATA = "Data"

Cloud = Annotated[
    str | None,
    typer.Option(
        envvar="PRIVTUNE_CLOUD",
        help="Address of the cloud's REST API, like https://cloud.example:8080.",
        rich_help_panel=CONNECTION,
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="PRIVTUNE_API_KEY",
        help="Your key. Better in the environment than here, where other users of this machine can see it.",
        rich_help_panel=CONNECTION,
        show_default=False,
    ),
]
CaCert = Annotated[
    Path | None,
    typer.Option(
        envvar="PRIVTUNE_CA",
        help="PEM file of the cloud's own certificate authority.",
        rich_help_panel=CONNECTION,
        show_default=False,
    ),
]
GrpcAddress = Annotated[
    str | None,
    typer.Option(
        envvar="PRIVTUNE_GRPC_ADDRESS",
        help="host:port of the cloud's gateway. Default: asked from the cloud.",
        rich_help_panel=CONNECTION,
        show_default=False,
    ),
]
Home = Annotated[
    Path | None,
    typer.Option(
        envvar="PRIVTUNE_HOME",
        help="Where jobs, heads and the noise already drawn are kept. Default: ~/.privtune",
        rich_help_panel=CONNECTION,
        show_default=False,
    ),
]
LocalModel = Annotated[
    str | None,
    typer.Option(
        help="Your own copy of the model (folder, hub id or GGUF), instead of the bottom that the cloud serves.",
        rich_help_panel=CONNECTION,
        show_default=False,
    ),
]
Patience = Annotated[
    float,
    typer.Option(
        min=1,
        help="Seconds without progress after which a run gives up; it can be resumed.",
        rich_help_panel=CONNECTION,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        envvar="PRIVTUNE_THREADS",
        min=1,
        help="CPU threads for the model's part here. Default: torch's choice, about one a core. Share the cores out "
        "when the cloud runs on the same machine.",
        show_default=False,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(help="Column of the text. Default: by the header.", rich_help_panel=DATA, show_default=False),
]
Text2Column = Annotated[
    str | None,
    typer.Option(help="Column of the second text, for pairs.", rich_help_panel=DATA, show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job id; `privtune jobs list` shows yours.")]


def home_folder(home: Path | None) -> Path:
    """The device's folder, absolute."""
    from privtune.device.home.paths import default_home

    return (home or default_home()).expanduser().absolute()


def control_plane(cloud: str | None, api_key: str | None, ca_cert: Path | None) -> ControlPlane:
    """The REST client. Raises InvalidInput or Unauthenticated when the address or the key is not given."""
    from privtune.device.link.rest import ControlPlane
    from privtune.shared.errors import InvalidInput

    if not cloud:
        raise InvalidInput("Which cloud? Set PRIVTUNE_CLOUD or give --cloud https://host:port.", param="cloud")
    return ControlPlane(cloud, api_key or "", ca_cert)


def check_skip(skip: str | None, tail: int | None, cut: int | None) -> None:
    """Raises InvalidInput for a skip that no job could have."""
    from privtune.shared.errors import InvalidInput

    if skip is not None and not tail:
        raise InvalidInput("--skip is about a tail: give --tail as well.", param="skip")
    if skip == "tuned" and cut == 0:
        raise InvalidInput(
            "--skip tuned trains a copy of the blocks below the cut, and at cut 0 there are none.", param="skip"
        )


def limit_threads(threads: int | None) -> None:
    """Let torch compute on this many CPU threads; None leaves its own choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def run_settings(
    control: ControlPlane,
    *,
    api_key: str | None,
    ca_cert: Path | None,
    home: Path | None,
    grpc_address: str | None,
    local_model: str | None = None,
    patience: float = 600.0,
) -> RunSettings:
    """How to reach the gateway; asks the control plane for its address if need be."""
    from privtune.device.agent.config import home_policy
    from privtune.device.session.run_settings import RunSettings

    return RunSettings(
        grpc_address=grpc_address or control.grpc_address(),
        api_key=(api_key or "").strip(),
        ca_cert=ca_cert,
        home=home_folder(home),
        local_model=local_model,
        no_progress_timeout=patience,
        policy=home_policy(home_folder(home)),
    )
