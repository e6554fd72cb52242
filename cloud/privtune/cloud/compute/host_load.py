"""How busy a host is, for people and programs that watch. Numbers over all owners; nobody's name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HostLoad:
    """One host.

    device: what computes: `cpu`, or the GPU's name.
    jobs_bytes, max_jobs_bytes: memory that all jobs hold beside the models, and may hold.
    gpu_bytes, max_gpu_bytes: of the whole GPU, also by others; None without one.
    models: base models in memory.
    sessions: of training and of generation.
    streams: of devices, open now.
    queue: messages that wait for their turn.
    busy_s: how long the present work has taken; 0: it waits.
    """

    device: str
    jobs_bytes: int
    max_jobs_bytes: int
    gpu_bytes: int | None
    max_gpu_bytes: int | None
    models: tuple[str, ...]
    sessions: int
    streams: int
    queue: int
    busy_s: float
