"""A tar of a home as a file: in clear, or encrypted with a passphrase.

encrypted   the wrapped key in one line (`vault_key`), then a whole file as `sealed_files` writes it
"""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

_NAME = "export"
_LONGEST = 1 << 12  # of the first line


@contextmanager
def writing(file: Path, passphrase: str | None) -> Iterator[tarfile.TarFile]:
    """Write a tar, encrypted with the passphrase unless that is None. Raises OSError."""
    if passphrase is None:
        with tarfile.open(file, "w") as archive:
            yield archive
        return
    from privtune.device.home.encryption.sealed_files import FileKey, SealingWriter
    from privtune.device.home.encryption.vault_key import WrappedKey

    key = secrets.token_bytes(32)
    with file.open("wb") as target:
        target.write(WrappedKey.new().wrapped(key, "passphrase", passphrase).text().encode())
        writer = SealingWriter(target, FileKey(key=key, name=_NAME))
        with tarfile.open(fileobj=cast(BinaryIO, writer), mode="w|") as archive:
            yield archive
        writer.finish()


@contextmanager
def reading(file: Path) -> Iterator[tarfile.TarFile]:
    """Read a tar in either form. Raises HomeLocked without its passphrase, OSError, tarfile.TarError, ValueError."""
    with file.open("rb") as source:
        sealed = source.read(1) == b"{"
        source.seek(0)
        if not sealed:
            with tarfile.open(fileobj=source, mode="r|") as archive:
                yield archive
            return
        from privtune.device.home.encryption.sealed_files import FileKey, SealedReader
        from privtune.device.home.encryption.vault_key import WrappedKey

        try:
            wrapped = WrappedKey.parse(source.readline(_LONGEST))
        except (TypeError, KeyError) as error:
            raise ValueError("its first line is no key") from error
        key = FileKey(key=wrapped.key(), name=_NAME)
        text = io.BufferedReader(SealedReader(source, key, source.tell()), 1 << 16)
        with tarfile.open(fileobj=cast(BinaryIO, text), mode="r|") as archive:
            yield archive
