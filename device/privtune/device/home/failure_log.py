"""The device's private log of failures, `home/privtune.log`: details that are never printed or sent."""

from __future__ import annotations

import os
from pathlib import Path

from privtune.device.home.paths import private_folder
from privtune.shared.printable import escaped


def log_failure(home: Path, text: str) -> Path | None:
    """Append to the log and return its path; None if not even that can be written."""
    file = home / "privtune.log"
    try:
        private_folder(home)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as log:
            log.writelines(f"{escaped(line)}\n" for line in text.rstrip().splitlines())
    except OSError:
        return None
    return file
