"""Where what can be made again is kept: verdicts on models, converted GGUF files."""

from __future__ import annotations

import os
from pathlib import Path

from privtune.shared.errors import StorageFull


def cache_folder() -> Path:
    """PRIVTUNE_CACHE, or a folder in the user's home. Raises `StorageFull` for a user without either."""
    if named := os.environ.get("PRIVTUNE_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "privtune"
    except RuntimeError:
        raise StorageFull("There is no home folder to keep a cache in: set PRIVTUNE_CACHE to a folder.") from None
