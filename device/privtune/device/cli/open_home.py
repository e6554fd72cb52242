"""A command's home: unlocked if it is encrypted, and kept from being converted, until the command ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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


def open_home(folder: Path) -> None:
    """Use a home until the command ends. Raises HomeLocked, PackageMissing."""
    from privtune.device.home.run_locks import opened
    from privtune.shared.at_rest import MARK, use_vault
    from privtune.shared.errors import StorageFull

    ending = _ending.get()
    if ending is None or not folder.is_dir():
        return
    with contextlib.suppress(OSError, StorageFull):  # whatever needs it will say what is wrong with it
        ending.enter_context(opened(folder))
    if (folder / MARK).exists():
        check_packages("an encrypted home needs")
        from privtune.device.home.encryption.conversion import unlock

        ending.callback(use_vault, folder, None)
        unlock(folder)
