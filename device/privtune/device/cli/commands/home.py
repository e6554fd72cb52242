"""`privtune home ...`: move this device's home to another machine, back it up, come back after a loss, encrypt it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from privtune.device.cli.error_report import guarded
from privtune.device.cli.options import AsJson, Home, closed_home, home_folder
from privtune.device.cli.printing import print_result
from privtune.device.client.open_home import check_packages
from privtune.shared.at_rest import MARK, read_text
from privtune.shared.errors import InvalidInput
from privtune.shared.wording import counted

app = typer.Typer(no_args_is_help=True, help="Move this device's home, back it up, recover it, encrypt it.")

ToFile = Annotated[Path, typer.Argument(metavar="FILE", help="The file to write. It is as private as your data.")]

Passphrase = Annotated[
    bool,
    typer.Option(
        "--passphrase",
        help="Encrypt the file with a passphrase: $PRIVTUNE_HOME_PASSPHRASE, or asked for.",
    ),
]


class Keeper(StrEnum):
    """Who keeps the key of an encrypted home."""

    keyring = "keyring"
    passphrase = "passphrase"


@app.command("export")
@guarded
def export_command(file: ToFile, passphrase: Passphrase = False, home: Home = None, as_json: AsJson = False) -> None:
    """Move this home away: write it to a file, and never draw in it again.

    Keys, ledger, maps, releases and jobs move; what the cloud serves is fetched again. Leave the data under the same
    paths on the new machine: the ledger knows a data set by its path.

    \b
    Example:
      privtune home export move.tar          # on the old machine
      privtune home import move.tar          # on the new one
    """
    from privtune.device.account.home_archive import export_home

    count = export_home(home_folder(home), file, _chosen(passphrase))
    line = f"{counted(count, 'file')} in {file}. This home draws nothing any more: import the file elsewhere."
    print_result({"files": count, "file": file, "moved": True}, line, as_json=as_json)


@app.command("backup")
@guarded
def backup(file: ToFile, passphrase: Passphrase = False, home: Home = None, as_json: AsJson = False) -> None:
    """Write a copy of this home to a file, and go on using the home; runs need not end.

    A copy that is behind may not draw: restore the newest, and see `privtune home recover`.
    """
    from privtune.device.account.home_archive import back_up_home

    count = back_up_home(home_folder(home), file, _chosen(passphrase))
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

    folder = closed_home(home)
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


@app.command("encrypt")
@guarded
def encrypt(
    key: Annotated[
        Keeper | None,
        typer.Option(help="Who keeps the key. Default: the keyring of this machine, where it has one."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Encrypt this home, or keep the key of an encrypted one in another way. End agents and servers first.

    The key is in the operating system's keyring, or wrapped by a passphrase: asked for at a terminal, elsewhere in
    $PRIVTUNE_HOME_PASSPHRASE. Without it nothing opens the home again: make a backup. Killed half-way, it is completed
    by running it again. Disks may keep old blocks in clear.
    """
    check_packages("an encrypted home needs")
    from privtune.device.home.encryption.conversion import encrypt_home
    from privtune.device.home.encryption.vault_key import has_keyring, new_passphrase

    folder = _existing(home)
    by = key or (Keeper.keyring if has_keyring() else Keeper.passphrase)
    count = encrypt_home(folder, by.value, new_passphrase() if by is Keeper.passphrase else "")
    line = f"{counted(count, 'file')} encrypted in {folder}. Its key: {by.value}."
    print_result({"files": count, "home": folder, "key": by.value}, line, as_json=as_json)


@app.command("decrypt")
@guarded
def decrypt(home: Home = None, as_json: AsJson = False) -> None:
    """Decrypt this home, and forget its key. Killed half-way, it is completed by running it again."""
    check_packages("an encrypted home needs")
    from privtune.device.home.encryption.conversion import decrypt_home

    folder = _existing(home)
    count = decrypt_home(folder)
    line = f"{counted(count, 'file')} decrypted in {folder}."
    print_result({"files": count, "home": folder}, line, as_json=as_json)


@app.command("status")
@guarded
def status(home: Home = None, as_json: AsJson = False) -> None:
    """Say whether this home is encrypted, and who keeps its key."""
    folder = _existing(home)
    if (folder / MARK).exists():
        check_packages("an encrypted home needs")
        from privtune.device.home.encryption.conversion import status_of

        found = status_of(folder)
        line = (
            f"{folder} is {found.state}. Its key: {found.kept_by}.\n"
            f"Private files: {found.encrypted:,} encrypted, {found.clear:,} in clear."
        )
        facts = {"state": found.state, "key": found.kept_by, "encrypted": found.encrypted, "clear": found.clear}
    else:
        line, facts = f"{folder} is in clear: `privtune home encrypt` encrypts it.", {"state": "clear"}
    print_result({"home": folder, **facts}, line, as_json=as_json)


@app.command("log")
@guarded
def log(home: Home = None, as_json: AsJson = False) -> None:
    """Print this home's private log of failures. Read it before you share it."""
    file = home_folder(home) / "privtune.log"
    text = read_text(file) if file.exists() else ""
    print_result({"log": text}, text or "Nothing has failed.", as_json=as_json)


def _existing(home: Path | None) -> Path:
    folder = closed_home(home)
    if not (folder / "ledger.sqlite").exists() and not (folder / "jobs").exists():
        raise InvalidInput(f"{folder} is no home: nothing has run in it.", param="home")
    return folder


def _chosen(passphrase: bool) -> str | None:
    if not passphrase:
        return None
    check_packages("an encrypted file needs")
    from privtune.device.home.encryption.vault_key import new_passphrase

    return new_passphrase()
