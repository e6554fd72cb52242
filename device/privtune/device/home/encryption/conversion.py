"""A home is encrypted or decrypted: file by file, each whole in one form or the other, whenever the process is killed.

`vault.json` comes first and goes last, and says which way the home is going; until it has arrived nothing but the same
conversion, or the one back, uses the home. A file is written beside its old form, flushed, and takes its place.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from privtune.device.home.encryption.sealed_files import is_sealed
from privtune.device.home.encryption.vault import HomeVault
from privtune.device.home.encryption.vault_key import KeptBy, WrappedKey
from privtune.device.home.run_locks import alone
from privtune.shared.at_rest import MARK, use_vault
from privtune.shared.errors import HomeLocked, InvalidInput, StorageFull
from privtune.shared.files import flush
from privtune.shared.sqlite import sqlite_errors

_SCRATCH = ".converting"
_NO_KEY = "''"
_PLAIN_DATABASE = b"SQLite format 3\0"


@dataclass(frozen=True, kw_only=True)
class HomeStatus:
    """How a home's private files lie on the disk. kept_by: who keeps the key, for people; empty in clear."""

    state: str
    kept_by: str
    encrypted: int
    clear: int


def status_of(home: Path) -> HomeStatus:
    """Count the private files; needs no key. Raises DataInvalid, OSError."""
    known = WrappedKey.load(home)
    sealed = [_encrypted(path) for path in _private(home)]
    return HomeStatus(
        state=known.state if known else "in clear",
        kept_by=known.by if known else "",
        encrypted=sum(sealed),
        clear=len(sealed) - sum(sealed),
    )


def unlock(home: Path) -> HomeVault | None:
    """Use the home's vault in this process; None for a home in clear. Raises HomeLocked, DataInvalid."""
    known = WrappedKey.load(home)
    if known is None:
        return None
    if known.state != "encrypted":
        verb = known.state.removesuffix("ing")
        raise HomeLocked(f"This home was left half-way: run `privtune home {verb}` again to complete it.")
    vault = HomeVault(home, known.key())
    use_vault(home, vault)
    return vault


def encrypt_home(home: Path, by: KeptBy, passphrase: str = "") -> int:
    """Encrypt every private file, or complete that; in an encrypted home, keep the key in another way.

    Returns the number of files that were in clear. Raises InvalidInput, HomeLocked, JobConflict while others use the
    home, StorageFull and ArtifactCorrupt, after which it is run again.
    """
    with _converting(home):
        known = WrappedKey.load(home)
        key = secrets.token_bytes(32) if known is None else known.key()
        wrapped = (known or WrappedKey.new()).wrapped(key, by, passphrase)
        replace(wrapped, state="encrypting").save(home)
        if known is not None and by == "passphrase":
            known.forget()
        count = _convert(home, HomeVault(home, key), encrypt=True)
        replace(wrapped, state="encrypted").save(home)
    return count


def decrypt_home(home: Path) -> int:
    """Decrypt every file, or complete that; returns the number that were encrypted. Raises as `encrypt_home`."""
    with _converting(home):
        known = WrappedKey.load(home)
        if known is None:
            raise InvalidInput("This home is not encrypted.", param="home")
        key = known.key()
        replace(known, state="decrypting").save(home)
        count = _convert(home, HomeVault(home, key), encrypt=False)
        (home / MARK).unlink()
        flush(home)
        known.forget()
    return count


@contextmanager
def _converting(home: Path) -> Iterator[None]:
    try:
        with alone(home):
            yield
    except OSError as error:
        raise StorageFull(
            f"{error.filename or home} can't be converted: {error.strerror}. Nothing is lost: run the command again."
        ) from error


def _convert(home: Path, vault: HomeVault, *, encrypt: bool) -> int:
    for scratch in home.rglob(f".*{_SCRATCH}*"):
        scratch.unlink()  # left by a process that was killed, a database's journal perhaps
    count = 0
    for path in list(_private(home)):
        if path.stat().st_size == 0 and path.suffix == ".sqlite":
            continue  # no database yet, of either form
        if _encrypted(path) != encrypt:
            _replace(path, vault, encrypt)
            count += 1
    return count


def _write(path: Path, target: Path, vault: HomeVault, encrypt: bool) -> None:
    """Write the other form of a file."""
    if path.suffix == ".sqlite":
        with sqlite_errors(f"the database {path}"):
            _export(path, target, vault, encrypt)
    elif encrypt:
        with path.open("rb") as source, target.open("wb") as file:
            vault.seal(source, file, path)
    else:
        with vault.open(path) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)


def _export(path: Path, target: Path, vault: HomeVault, encrypt: bool) -> None:
    """Copy a database into its other form. A journal of its old form is worked off first, and gone from the disk."""
    import sqlcipher3.dbapi2 as sqlcipher

    key = vault.database_key(path)
    with closing(sqlcipher.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA cipher_log_level = NONE")
        if not encrypt:
            database.execute(f"PRAGMA key = {key}")
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("BEGIN EXCLUSIVE")
        database.execute("COMMIT")
        flush(path.parent)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        database.execute(f"ATTACH DATABASE ? AS other KEY {key if encrypt else _NO_KEY}", (str(target),))
        database.execute("SELECT sqlcipher_export('other')")
        database.execute(f"PRAGMA other.user_version = {int(version)}")
        database.execute("DETACH DATABASE other")


def _replace(path: Path, vault: HomeVault, encrypt: bool) -> None:
    target = path.with_name(f".{path.name}{_SCRATCH}")
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    _write(path, target, vault, encrypt)
    shutil.copystat(path, target)
    flush(target)
    os.replace(target, path)
    flush(path.parent)


def _private(home: Path) -> Iterator[Path]:
    """The files of the home that are encrypted, or would be."""
    vault = HomeVault(home, b"")
    for path in sorted(home.rglob("*")):
        side = path.name.endswith(("-wal", "-shm", "-journal")) or _SCRATCH in path.name
        if path.is_file() and not path.is_symlink() and not side and vault.covers(path):
            yield path


def _encrypted(path: Path) -> bool:
    with path.open("rb") as file:
        if path.suffix != ".sqlite":
            return is_sealed(file)
        return file.read(len(_PLAIN_DATABASE)) != _PLAIN_DATABASE
