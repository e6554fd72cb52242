"""The owner's command line, `privtune`. Importing it is cheap: commands import what they need when they run."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from privtune.device.cli.commands import home, jobs, ledger, surrogates, tables, teachings, transcript
from privtune.device.cli.commands.agent import agent
from privtune.device.cli.commands.audit import audit
from privtune.device.cli.commands.doctor import doctor
from privtune.device.cli.commands.enroll import enroll
from privtune.device.cli.commands.evaluate import evaluate
from privtune.device.cli.commands.export import export
from privtune.device.cli.commands.finetune import EPILOG, finetune
from privtune.device.cli.commands.generate import generate
from privtune.device.cli.commands.info import mechanisms, version
from privtune.device.cli.commands.init import init
from privtune.device.cli.commands.models import models
from privtune.device.cli.commands.plan import plan
from privtune.device.cli.commands.predict import predict
from privtune.device.cli.commands.protections import protections
from privtune.device.cli.commands.push import push
from privtune.device.cli.commands.serve import serve
from privtune.device.cli.commands.tune import tune_noise
from privtune.device.cli.error_report import report
from privtune.device.client.settings_file import settings_of, settings_path
from privtune.device.runtime.memory import keep_lean
from privtune.shared import tracing
from privtune.shared.errors import PrivTuneError

DEBUG = "--debug"

app = typer.Typer(
    name="privtune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(init)
app.command()(doctor)
app.command(epilog=EPILOG)(finetune)
app.command()(plan)
app.command(epilog=EPILOG)(agent)
app.command()(enroll)
app.add_typer(jobs.app, name="jobs")
app.add_typer(teachings.app, name="teachings")
app.add_typer(ledger.app, name="ledger")
app.add_typer(home.app, name="home")
app.add_typer(transcript.app, name="transcript")
app.add_typer(tables.app, name="tables")
app.add_typer(surrogates.app, name="surrogates")
app.command()(audit)
app.command("tune-noise", epilog=EPILOG)(tune_noise)
app.command()(predict)
app.command()(generate)
app.command()(serve)
app.command(epilog=EPILOG)(evaluate)
app.command()(export)
app.command()(push)
app.command()(models)
app.command()(protections)
app.command()(mechanisms)
app.command()(version)


def _flowing(group: typer.Typer) -> None:
    """Let the paragraphs of help texts flow: typer keeps a docstring's line breaks, which are no terminal's width."""
    for command in group.registered_commands:
        paragraphs = inspect.cleandoc(getattr(command.callback, "__doc__", None) or "").split("\n\n")
        command.help = "\n\n".join(one if one.startswith("\b") else one.replace("\n", " ") for one in paragraphs)
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _flowing(inner.typer_instance)


_flowing(app)


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="PRIVTUNE_CONFIG",
            help="Your defaults for options, before the command. Default: privtune.yaml in the home folder.",
            show_default=False,
        ),
    ] = None,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show tracebacks. Works anywhere in the command.")] = False,
) -> None:
    """Fine-tune a provider's model on your text. The text, its tokens and its labels stay on this machine.

    \b
    First say which cloud, and give the key that its operator gave you; then see whether all is in place:
      privtune init
      privtune doctor

    \b
    Then see what there is, train a model, list your jobs, use the model privately, and export it:
      privtune models
      privtune protections
      privtune plan --model minilm --data reviews.csv --holdout 0.1
      privtune finetune --model minilm --data reviews.csv --holdout 0.1 --protect names
      privtune jobs list
      privtune predict JOB --text "a fine film"
      privtune export JOB ./adapter
    """
    if not context.obj and not context.resilient_parsing:
        context.default_map = settings_of(context.command, settings_path(config))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit. Failures end in one line on stderr and an exit code of docs/exit-codes.md."""
    if arguments is None:  # this process is the command's own
        keep_lean()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG in given or bool(os.environ.get("PRIVTUNE_DEBUG"))
    tracing.configure("device")
    try:
        only_help = bool({"-h", "--help"} & set(given))  # shown whatever is wrong with a file
        app([argument for argument in given if argument != DEBUG], prog_name="privtune", obj=only_help)
    except PrivTuneError as error:
        sys.exit(report(error, debug=debug))
    finally:
        tracing.end()
