"""The device's private log of failures, `home/privtune.log`: details that are never printed or sent."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from privtune.device.home.paths import private_folder
from privtune.shared.at_rest import append
from privtune.shared.errors import HomeLocked
from privtune.shared.files import held
from privtune.shared.printable import escaped


def log_failure(home: Path, text: str) -> Path | None:
    """Append to the log and return its path; None if not even that can be written."""
    file = home / "privtune.log"
    try:
        private_folder(home)
        # An encrypted file grows by one process at a time.
        with held(file.with_name(".privtune.log.lock"), wait=True), closing(append(file)) as log:
            log.write("".join(f"{escaped(line)}\n" for line in text.rstrip().splitlines()).encode())
    except (OSError, HomeLocked):
        return None
    return file
