"""Jobs that end this process itself, which a service manager starts again: the third time is the last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from privtune.device.home.paths import job_path
from privtune.shared.at_rest import read_text
from privtune.shared.errors import InternalError
from privtune.shared.files import write_json
from privtune.shared.wording import counted

MOST = 3  # processes that may end in a job before it gets to its next checkpoint


@contextmanager
def attempt(home: Path, job_id: str) -> Iterator[None]:
    """Work on a job; the caller holds its lock. A file that stays behind tells the next process that this one ended.

    Raises InternalError for a job in which MOST processes have ended since its last checkpoint.
    """
    folder = job_path(home, job_id)
    file, kept = folder / "attempts.json", sorted(path.name for path in (folder / "checkpoints").glob("*"))
    before = _read(file)
    ended = before["ended"] if before.get("checkpoints") == kept else 0
    if ended >= MOST:
        raise InternalError(
            f"{counted(ended, 'process')} ended in this job (killed, or out of memory?); delete {file} to try it again"
        )
    write_json(file, {"ended": ended + 1, "checkpoints": kept})
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(file))
    except (OSError, ValueError):
        return {"ended": 0}
    return found if isinstance(found, dict) and isinstance(found.get("ended"), int) else {"ended": 0}
