"""A hash chain over lines: each hash covers the one before, so a change, a gap or a swap breaks the chain there.

It does not show that lines are missing at the END, or that somebody with write access rewrote the whole file. For that,
compare the last hash with one that was noted elsewhere: `privtune ledger` prints it, and the ledger holds those of the
transcripts.
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
    """SHA-256, hex. Processors have instructions for it, and hashlib releases the GIL for large inputs."""
    return hashlib.sha256(data).hexdigest()
