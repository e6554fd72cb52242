"""A home in use: unlocked if it is encrypted, and kept from being converted, until the command or the client ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

HOME_PACKAGES = ("cryptography", "keyring", "sqlcipher3")
_ending: ContextVar[ExitStack | None] = ContextVar("what ends with the command", default=None)


@contextmanager
def one_command() -> Iterator[None]:
    """What `open_home` opens inside ends with it."""
    with ExitStack() as stack:
        token = _ending.set(stack)
        try:
            yield
        finally:
            _ending.reset(token)


def check_packages(use: str) -> None:
    """Raise PackageMissing without what encryption needs. use: as `privtune.shared.packages.require`."""
    from privtune.shared.packages import require

    require(use, HOME_PACKAGES, "keyring")


def closed_home(folder: Path, say: Callable[[str], None]) -> Path:
    """The device's folder, made or closed to other users; `say` gets a warning where that fails."""
    from privtune.device.home.paths import private_folder

    with contextlib.suppress(OSError):  # whatever needs it will say what is wrong with it
        if not private_folder(folder):
            say(f"Warning: other users can look into {folder}; give --home a folder of your own.")
    return folder


def open_home(folder: Path) -> None:
    """Use a home until the command ends. Raises as `home_in_use`."""
    ending = _ending.get()
    if ending is not None and folder.is_dir():
        ending.enter_context(home_in_use(folder))


@contextmanager
def home_in_use(folder: Path) -> Iterator[None]:
    """Use a home, unlocked if it is encrypted. Raises HomeLocked, PackageMissing."""
    from privtune.device.home.run_locks import opened
    from privtune.shared.at_rest import MARK, use_vault
    from privtune.shared.errors import StorageFull

    with ExitStack() as stack:
        with contextlib.suppress(OSError, StorageFull):  # whatever needs it will say what is wrong with it
            stack.enter_context(opened(folder))
        if (folder / MARK).exists():
            check_packages("an encrypted home needs")
            from privtune.device.home.encryption.conversion import unlock

            stack.callback(use_vault, folder, None)
            unlock(folder)
        yield
