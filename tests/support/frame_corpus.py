"""Streams of frames that are worth trying again: a line each, which side it is for and its bytes."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "security" / "frames.corpus"


def load(path: Path = CORPUS) -> list[tuple[str, bytes]]:
    """(side, stream) of each; none where there is no file."""
    if not path.exists():
        return []
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return [(side, zlib.decompress(base64.b64decode(data))) for side, data in lines]


def save(streams: Iterable[tuple[str, bytes]], path: Path) -> None:
    """Replace the file."""
    lines = [f"{side} {base64.b64encode(zlib.compress(stream, 9)).decode()}\n" for side, stream in streams]
    path.write_text("".join(lines), encoding="ascii")
