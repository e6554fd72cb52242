"""`privtune home ...`: move this device's home to another machine, back it up, and come back after a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privtune.device.cli.error_report import guarded
from privtune.device.cli.options import AsJson, Home, home_folder
from privtune.device.cli.printing import print_result
from privtune.shared.wording import counted

app = typer.Typer(no_args_is_help=True, help="Move this device's home to another machine, back it up, recover it.")

ToFile = Annotated[Path, typer.Argument(metavar="FILE", help="The file to write. It is as private as your data.")]


@app.command("export")
@guarded
def export_command(file: ToFile, home: Home = None, as_json: AsJson = False) -> None:
    """Move this home away: write it to a file, and never draw in it again.

    Keys, ledger, maps, releases and jobs move; what the cloud serves is fetched again. Leave the data under the same
    paths on the new machine: the ledger knows a data set by its path.

    \b
    Example:
      privtune home export move.tar          # on the old machine
      privtune home import move.tar          # on the new one
    """
    from privtune.device.account.home_archive import export_home

    count = export_home(home_folder(home), file)
    line = f"{counted(count, 'file')} in {file}. This home draws nothing any more: import the file elsewhere."
    print_result({"files": count, "file": file, "moved": True}, line, as_json=as_json)


@app.command("backup")
@guarded
def backup(file: ToFile, home: Home = None, as_json: AsJson = False) -> None:
    """Write a copy of this home to a file, and go on using the home; runs need not end.

    A copy that is behind may not draw: restore the newest, and see `privtune home recover`.
    """
    from privtune.device.account.home_archive import back_up_home

    count = back_up_home(home_folder(home), file)
    print_result({"files": count, "file": file}, f"{counted(count, 'file')} in {file}.", as_json=as_json)


@app.command("import")
@guarded
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `home export` or `home backup` wrote.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Make a home of an export or a backup, in an empty folder. Homes are not merged."""
    from privtune.device.account.home_archive import import_home

    folder = home_folder(home)
    count = import_home(file, folder)
    line = f"{counted(count, 'file')} in {folder}. Its next run tells the cloud."
    print_result({"files": count, "home": folder}, line, as_json=as_json)


@app.command("recover")
@guarded
def recover(home: Home = None, as_json: AsJson = False) -> None:
    """Go on with an older copy of this home, because the newest one is lost.

    What was drawn since the copy was made is unknown. So whatever is drawn from here on counts as another noise
    distribution: it needs --another-noise (or a policy that allows it) and is added to what was spent. Unfinished jobs
    with randomised labels or slopes have to be started anew.
    """
    from privtune.device.account.home_archive import recover_home

    folder = home_folder(home)
    recover_home(folder)
    line = "This home may draw again. What it draws now counts as another noise distribution."
    print_result({"home": folder, "recovered": True}, line, as_json=as_json)
