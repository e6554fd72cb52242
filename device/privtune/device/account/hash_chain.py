"""A chain over lines: each line's hash covers the one before, so a change, a gap or a swap shows from there on.

It does not show that lines are missing at the END, or that somebody who may write the file made all of it anew: for
that, compare the last hash with one that was noted elsewhere (`privtune ledger` prints it; the ledger holds those of
the transcripts).
"""

from __future__ import annotations

import hashlib


def genesis(*names: str) -> str:
    """The hash before the first line of the chain with these names, hex."""
    return digest("\0".join(("privtune chain 1", *names)).encode())


def chained(previous: str, line: str) -> str:
    """The hash of a line that follows `previous`, hex."""
    return digest(previous.encode() + b"\n" + line.encode())


def digest(data: bytes | bytearray | memoryview) -> str:
    """SHA-256, hex: hardware makes it the fastest here, and large inputs are hashed without the interpreter's lock."""
    return hashlib.sha256(data).hexdigest()
