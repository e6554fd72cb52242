"""`privtune agent`: wait for jobs that name this device's data sets, and train them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.interrupt import pausing
from privtune.device.cli.options import (
    ApiKey,
    AsJson,
    CaCert,
    Cloud,
    GrpcAddress,
    Home,
    Patience,
    Threads,
    control_plane,
    home_folder,
    limit_threads,
)

if TYPE_CHECKING:
    from privtune.device.agent.config import AgentConfig


@guarded
def agent(
    config: Annotated[
        Path | None, typer.Option(help="agent.yaml: data sets, policy, local models.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A data set that jobs may name as device://NAME; may be repeated."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Exit after one job, with its exit code.")] = False,
    no_noise: Annotated[
        bool, typer.Option("--no-noise", help="Policy: also accept jobs that send clean vectors.")
    ] = False,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks for jobs.")] = 2.0,
    as_json: AsJson = False,
    cloud: Cloud = None,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
    grpc_address: GrpcAddress = None,
    patience: Patience = 600.0,
    home: Home = None,
    threads: Threads = None,
) -> None:
    """Wait for jobs that name this device's data sets, and train them one after another.

    A job that asks for more than the policy allows is refused before anything is sent: by default no job without noise,
    none with less noise than the mechanism's default, and none that shares labels. A job that was under way goes on
    after a restart, unless a person paused it.

    \b
    Examples:
      privtune agent --data reviews=reviews.csv
      privtune agent --config agent.yaml

    \b
    agent.yaml:
      datasets:
        reviews: {path: reviews.csv, text: body, label: stars, holdout: 0.1}
      policy:
        mechanisms: [dchi]
        bounds: {dchi: {noise_ratio: {min: 8}}}
        models: ["minilm*"]
        max_epochs: 10
        budget: {releases: 50000, jobs: 5}
    """
    settings = _configured(config, data or [], home_folder(home), no_noise=no_noise)
    from privtune.device.agent.agent import Agent
    from privtune.device.cli.run_screen import make_screen
    from privtune.device.session.run_settings import RunSettings

    stop = threading.Event()
    with make_screen(as_json=as_json) as screen, control_plane(cloud, api_key, ca_cert) as control:
        run = RunSettings(
            grpc_address=grpc_address or "",
            api_key=(api_key or "").strip(),
            ca_cert=ca_cert,
            home=home_folder(home),
            no_progress_timeout=patience,
        )
        worker = Agent(control=control, config=settings, settings=run, screen=screen, stop=stop, once=once, poll_s=poll)
        limit_threads(threads)
        with pausing(stop, screen.message):
            worker.run()


def _configured(file: Path | None, pairs: list[str], home: Path, *, no_noise: bool) -> AgentConfig:
    from privtune.device.agent.config import AgentConfig, DataSetting, check_name, home_policy, load_agent_config
    from privtune.shared.errors import InvalidInput

    config = load_agent_config(file) if file is not None else AgentConfig()
    named = {}
    for pair in pairs:
        name, sign, path = pair.partition("=")
        if not sign or not path:
            raise InvalidInput(f"--data {pair!r}: NAME=FILE is expected, like reviews=reviews.csv.", param="data")
        try:
            check_name(name)
        except ValueError as error:
            raise InvalidInput(f"--data: {error}.", param="data") from None
        named[name] = DataSetting(path=str(Path(path).expanduser().absolute()) if Path(path).exists() else path)
    datasets = {**config.datasets, **named}
    if not datasets:
        raise InvalidInput("No data sets: give --config agent.yaml or --data NAME=FILE.", param="data")
    # agent.yaml's own policy, else the one in the device's folder, else the defaults.
    policy = config.policy if "policy" in config.model_fields_set else home_policy(home) or config.policy
    if no_noise:
        policy = policy.model_copy(update={"allow_no_noise": True})
    return config.model_copy(update={"datasets": datasets, "policy": policy})
