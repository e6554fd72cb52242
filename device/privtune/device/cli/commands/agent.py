"""`privtune agent`: wait for jobs that name this device's data sets, and train them."""

from __future__ import annotations

import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privtune.device.cli.connection import Connection
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson, limit_threads
from privtune.device.cli.signals import pausing
from privtune.device.protections.protection import DEFAULT, protection

if TYPE_CHECKING:
    from privtune.device.agent.agent_config import AgentConfig


class LogLevel(StrEnum):
    """What the log file has."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


@guarded
@grouped
def agent(
    connection: Connection,
    config: Annotated[
        Path | None, typer.Option(help="agent.yaml: data sets, policy, local models.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A data set that jobs may name as device://NAME; may be repeated."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Exit after one job, with its exit code.")] = False,
    protect: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Policy: accept jobs that protect at least as this protection does (`privtune protections`). Default: "
            f"the policy's own, which is {DEFAULT} unless it says otherwise.",
            show_default=False,
        ),
    ] = None,
    log_file: Annotated[
        Path | None,
        typer.Option(
            help="Log to this file, as JSON lines without texts; renamed at 10 MiB, the five newest kept. Default: no "
            "log.",
            envvar="PRIVTUNE_LOG_FILE",
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option(help="Of the log file: debug, info, warning or error.", envvar="PRIVTUNE_LOG_LEVEL")
    ] = LogLevel.info,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two requests for new jobs.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Wait for jobs that name this device's data sets, and train them one after another.

    A job that asks for more than the policy allows is refused before anything is sent. The default policy refuses jobs
    that protect less than `names` does, or share labels. Of each job it says what the cloud will be able to read. After
    a restart, the agent resumes the job it was working on, unless a person paused it.

    \b
    Examples:
      privtune agent --data reviews=reviews.csv
      privtune agent --config agent.yaml

    \b
    agent.yaml:
      datasets:
        reviews: {path: reviews.csv, text: body, label: stars, holdout: 0.1}
      policy:
        protections: \\[words]
        models: ["minilm*"]
        max_epochs: 10
        budget: {releases: 50000, jobs: 5}
    """
    if log_file is not None:
        from privtune.shared.logs import configure_logging

        configure_logging(log_level.value, "json", log_file)
    settings = _configured(config, data or [], connection.folder, protect)
    from privtune.device.agent.agent import Agent
    from privtune.device.client.training_screen import make_screen

    stop = threading.Event()
    with make_screen(as_json=as_json) as screen, connection.control() as control:
        worker = Agent(
            control=control,
            config=settings,
            settings=connection.local_settings(connection.grpc_address or ""),
            screen=screen,
            stop=stop,
            once=once,
            poll_s=poll,
        )
        limit_threads(connection.threads)
        with pausing(stop, screen.message):
            worker.run()


def _configured(file: Path | None, pairs: list[str], home: Path, protect: str | None) -> AgentConfig:
    from privtune.device.agent.agent_config import AgentConfig, DataSetting, check_name, load_agent_config
    from privtune.device.home.policy_file import home_policy
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
    if protect is not None:
        policy = policy.model_copy(update={"protections": (protection(protect).name,)})
    return config.model_copy(update={"datasets": datasets, "policy": policy})
