"""What a job of a test put on the wire, read back from its transcript."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from privtune.device.account.verify import kept_frame, read_run, runs_of
from privtune.split.v1 import split_pb2 as pb


def recorded_frames(folder: Path, job_id: str) -> Iterator[tuple[dict[str, Any], pb.Frame]]:
    """Every kept frame with its line, oldest first, from a transcript whose chain must be whole."""
    for path in runs_of(folder):
        lines, _, broken = read_run(path, job_id)
        assert broken is None
        for line in lines:
            if "at" in line:
                yield line, kept_frame(path, line)
