"""Dropout as a function of a key, so that a resumed job repeats an uninterrupted run exactly. Never used for noise."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from privtune.shared.modeling.weights_hash import weights_sha256

# torch's default generator is shared by the whole process: two threads that seed it would disturb each other.
_LOCK = threading.RLock()


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Inside, torch's random numbers depend on `key` alone; afterwards its generator continues as before."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    with started_at(int.from_bytes(digest[:7], "little")):
        yield


@contextmanager
def started_at(seed: int) -> Iterator[None]:
    """As `seeded`, with torch's own seed. Whoever draws from torch's default generator holds it this way."""
    with _LOCK, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def dropout_sha256(device: torch.device) -> str:
    """Hex hash of dropout drawn from a fixed seed, of activations and inside attention; it differs between processors.

    Two machines with the same hash draw the same dropout under the same key.
    """
    ones, heads = torch.ones(4096, device=device), torch.ones(1, 1, 64, 8, device=device)
    with seeded("dropout"):
        drawn = (
            torch.nn.functional.dropout(ones, 0.5),
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5),
        )
    return weights_sha256(dict(zip("ab", drawn, strict=True)))
