"""A home in one file: moved to another machine, or backed up and restored.

The file is a tar of everything in the home but what can be fetched again or belongs to a process. Databases are copied
by SQLite, so that a copy is whole whoever uses them. Files of an encrypted home are copied as they are, and its key
under a passphrase; a home in clear is encrypted as one file, if asked for. The last member, `export.json`,
lists every file with its hash, so that a file that was cut off is not taken for a home.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from privtune.device.account import transport
from privtune.device.account.home_identity import HomeIdentity
from privtune.device.account.ledger import FILE as LEDGER
from privtune.device.home.paths import private_folder
from privtune.device.home.run_locks import ALONE, OPEN, runs_under_way
from privtune.device.home.run_locks import FOLDER as RUNS
from privtune.shared import __version__
from privtune.shared.at_rest import MARK, use_vault
from privtune.shared.errors import ArtifactCorrupt, InvalidInput, JobConflict, StorageFull
from privtune.shared.files import flush, flush_all, replacing_file
from privtune.shared.sqlite import copy_database
from privtune.shared.wording import counted

MOVED = "moved"  # kind of a note in the ledger
_CONTENTS = "export.json"
_LEFT_OUT = {"bottoms", "taught", RUNS, OPEN, "privtune.log", MARK}  # at the top of a home
_IMPORT = ".import"
_NOTHING = {_IMPORT, OPEN, ALONE, "privtune.log", ".privtune.log.lock"}  # of a home that was never used
_ORDER = {MARK: 0, LEDGER: 1}  # what comes into its place first


def export_home(home: Path, file: Path, passphrase: str | None = None) -> int:
    """Write the home to `file` (mode 0600) and mark it as moved: from here on it draws nothing. Repeatable.

    passphrase: encrypts the file; the copy of an encrypted home is encrypted as the home is, and has its key wrapped by
        the passphrase.

    Returns the number of files. Raises InvalidInput without a home, or for a key in the keyring without a passphrase,
    JobConflict while a run draws, StorageFull, after which the home is in use as before.
    """
    with _identity(home) as identity:
        moved_before = identity.moved
        identity.set_moved(True)
        try:
            # After the mark: a run locks first and then looks for it.
            if running := runs_under_way(home):
                raise JobConflict(f"{counted(running, 'run')} of this home draws right now; end it first.")
            if not moved_before:
                identity.note(MOVED, {})
            return _write(home, file, passphrase)
        except BaseException:
            identity.set_moved(bool(moved_before))
            raise


def back_up_home(home: Path, file: Path, passphrase: str | None = None) -> int:
    """Write the home to `file` (mode 0600) and go on using it; returns the number of files.

    Raises InvalidInput without a home, StorageFull.
    """
    with _identity(home):
        return _write(home, file, passphrase)


def import_home(file: Path, home: Path) -> int:
    """Make a home of such a file in an empty folder; returns the number of files.

    Homes are not merged: each has one count and one chain of entries, and the budgets of two can't be added after the
    fact.

    Raises InvalidInput for a folder that holds something or a file that can't be read, ArtifactCorrupt, StorageFull.
    """
    if home.exists() and any(one.name not in _NOTHING for one in home.iterdir()):
        raise InvalidInput(f"{home} is not empty, and homes are not merged; give --home another folder.", param="home")
    scratch = home / _IMPORT
    try:
        private_folder(home)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700)
        count = _unpack(file, scratch)
        with _unlocked(scratch), HomeIdentity(scratch) as identity:
            identity.set_moved(True)  # until everything is in its place
        flush_all(scratch)
        for path in sorted(scratch.iterdir(), key=lambda one: _ORDER.get(one.name, len(_ORDER))):
            path.rename(home / path.name)
        flush(home)
        scratch.rmdir()
    except OSError as error:
        raise StorageFull(f"{home} can't be written: {error.strerror}; empty it and try again.") from error
    with _unlocked(home), HomeIdentity(home) as identity:
        identity.set_moved(False)
    return count


def recover_home(home: Path) -> None:
    """Go on with an older copy of a home, as another home (`HomeIdentity.renew`). Raises InvalidInput without one."""
    with _identity(home) as identity:
        identity.renew()


@contextmanager
def _unlocked(home: Path) -> Iterator[None]:
    """Use the vault of a home that has one. Raises HomeLocked where its passphrase is not at hand."""
    if not (home / MARK).exists():
        yield
        return
    from privtune.device.home.encryption.conversion import unlock

    unlock(home)
    try:
        yield
    finally:
        use_vault(home, None)


@contextmanager
def _identity(home: Path) -> Iterator[HomeIdentity]:
    if not (home / LEDGER).exists():
        raise InvalidInput(f"{home} is no home that has released anything: it has no ledger.", param="home")
    with HomeIdentity(home) as identity:
        yield identity


def _write(home: Path, file: Path, passphrase: str | None) -> int:
    contents: list[dict[str, Any]] = []
    key = _carried_key(home, passphrase)
    try:
        with tempfile.TemporaryDirectory(dir=home, prefix=".export-") as folder, replacing_file(file) as target:
            target.touch(0o600)
            listed = Path(folder) / _CONTENTS
            with transport.writing(target, None if key else passphrase) as archive:
                for path in _files(home):
                    name = path.relative_to(home).as_posix()
                    source = _snapshot(path, Path(folder)) if path.suffix == ".sqlite" else path
                    contents.append({"name": name, "size": source.stat().st_size, "sha256": _sha256(source)})
                    archive.add(source, name)
                if key:
                    listed.write_text(key)
                    archive.add(listed, MARK)
                listed.write_text(json.dumps({"format": 1, "version": __version__, "files": contents}))
                archive.add(listed, _CONTENTS)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageFull(f"{file} can't be written: {reason}.") from error
    return len(contents)


def _carried_key(home: Path, passphrase: str | None) -> str | None:
    """The key of an encrypted home as a copy carries it: under a passphrase, since no keyring travels."""
    if not (home / MARK).exists():
        return None
    from privtune.device.home.encryption.vault_key import WrappedKey

    known = WrappedKey.load(home)
    if known is not None and passphrase is not None:
        known = known.wrapped(known.key(), "passphrase", passphrase)
    elif known is not None and known.by != "passphrase":
        raise InvalidInput(
            "The key of this home is in the keyring of this machine, and its copy needs one that travels: --passphrase",
            param="passphrase",
        )
    return None if known is None else known.text()


def _files(home: Path) -> Iterator[Path]:
    """What a home consists of, its ledger first: it must not know of less than the stores that are copied after it."""
    yield home / LEDGER
    for path in sorted(home.rglob("*")):
        inside = path.relative_to(home)
        hidden = any(part.startswith(".") for part in inside.parts)
        process = path.name == "lock" or path.name.endswith(("-wal", "-shm", "-journal"))
        if path.is_file() and not (inside.parts[0] in _LEFT_OUT or hidden or process or inside == Path(LEDGER)):
            yield path


def _snapshot(path: Path, folder: Path) -> Path:
    """A copy of a database by SQLite itself, one at a time."""
    copy = folder / "copy.sqlite"
    copy_database(path, copy)
    return copy


def _unpack(file: Path, folder: Path) -> int:
    listed: dict[str, Any] = {}
    try:
        with transport.reading(file) as archive:
            for member in archive:
                source = archive.extractfile(member) if member.isreg() and _inside(member.name) else None
                if source is None:
                    raise ArtifactCorrupt(f"{file} holds what no home holds; nothing of it was used.")
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with source, open(path, "xb", opener=_private) as target:
                    shutil.copyfileobj(source, target)
        contents = folder / _CONTENTS
        if contents.exists():
            listed = json.loads(contents.read_text())
            contents.unlink()
    except FileNotFoundError:
        raise InvalidInput(f"There is no file {file}.", param="file") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ArtifactCorrupt(f"{file} is no export of a home, or damaged ({error}).") from error
    files = listed.get("files", [])
    if not files or any(_sha256(folder / one["name"]) != one["sha256"] for one in files):
        raise ArtifactCorrupt(f"{file} is damaged or was cut off; nothing of it was used.")
    return len(files)


def _sha256(path: Path) -> str:
    """Of a file as it lies on the disk, encrypted or not."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inside(name: str) -> bool:
    """Whether a member's name stays in the folder that it is unpacked to."""
    return not any(part in ("", ".", "..") or "\\" in part or ":" in part for part in name.split("/"))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
