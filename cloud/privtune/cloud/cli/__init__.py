"""The operator's command line, `privtune-cloud`. Importing it is light: each command imports what it needs."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from privtune.cloud.cli.commands import certs, db, devices, keys, limits
from privtune.cloud.cli.commands.audit_log import audit_log
from privtune.cloud.cli.commands.models import models
from privtune.cloud.cli.commands.serve import SERVE_EPILOG, serve
from privtune.cloud.cli.commands.teach import teach
from privtune.shared import __version__
from privtune.shared.errors import InvalidInput, PrivTuneError, missing_package

app = typer.Typer(
    name="privtune-cloud",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""The provider's side of PrivTune: serves models for private fine-tuning.

**First steps**

    privtune-cloud serve --model minilm=/models/all-MiniLM-L6-v2

    privtune-cloud keys create --owner alice

Then give the key and the address to the owner of the data, who runs `privtune finetune`.""",
)
app.command(epilog=SERVE_EPILOG)(serve)
app.command()(models)
app.command()(teach)
app.command()(audit_log)
app.add_typer(keys.app, name="keys")
app.add_typer(devices.app, name="devices")
app.add_typer(limits.app, name="limits")
app.add_typer(db.app, name="db")
app.add_typer(certs.app, name="certs")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"privtune-cloud {__version__}")
        raise typer.Exit


def main() -> None:
    """Run a command and exit. Failures end in one line on stderr and an exit code of docs/exit-codes.md."""
    try:
        code = app(standalone_mode=False)
    except PrivTuneError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        missing = missing_package(error, "cloud")
        if missing is None:
            raise
        _fail(missing)
    except Exception as error:
        _usage_or_raise(error)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _usage_or_raise(error: Exception) -> None:
    # typer's own refusals (an unknown option, a port out of range) print themselves.
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    sys.exit(InvalidInput.exit_code)


def _fail(error: PrivTuneError) -> None:
    if error.detail and logging.getLogger().handlers:  # only `serve` logs
        logging.getLogger(__name__).error(error.message, extra={"reason": error.reason, "detail": error.detail})
    typer.echo(f"privtune-cloud: {error.message}", err=True)
    sys.exit(error.exit_code)
