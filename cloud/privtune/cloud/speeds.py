"""How fast this cloud computes, measured on the real steps of its jobs, so that a device can plan before it starts one.

In memory: what another machine or another version measured before a restart says nothing of this one.
"""

from __future__ import annotations

import threading
from typing import Literal

Pass = Literal["train", "forward"]

_KEPT = 0.99  # of what was measured, at each further measurement: older ones count less
_LEAST_S = 0.01  # less says nothing


class Speeds:
    """Tokens through one block a second, by model. Thread-safe."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, Pass], tuple[float, float]] = {}
        self._lock = threading.Lock()

    def add(self, model: str, kind: Pass, block_tokens: int, seconds: float) -> None:
        """Count a part of a step.

        kind: train: forward, backward and the optimiser; forward: without a graph.
        block_tokens: positions, padding included, times blocks; 0 where an earlier part has counted them.
        """
        with self._lock:
            tokens, spent = self._sums.get((model, kind), (0.0, 0.0))
            self._sums[model, kind] = _KEPT * tokens + block_tokens, _KEPT * spent + seconds

    def of(self, model: str) -> dict[str, float | None]:
        """Of a model the speed by kind; None until it was measured."""
        with self._lock:
            return {kind: self._speed(model, kind) for kind in ("train", "forward")}

    def _speed(self, model: str, kind: Pass) -> float | None:
        tokens, seconds = self._sums.get((model, kind), (0.0, 0.0))
        return tokens / seconds if tokens and seconds >= _LEAST_S else None
