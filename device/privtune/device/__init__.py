"""The owner's side: text, labels and noise live here and never leave.

`Client` is where to begin: `from privtune.device import Client; help(Client)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privtune.device.client.async_client import AsyncClient, AsyncFineTuneJob, AsyncJobModel
    from privtune.device.client.client import Client
    from privtune.device.client.finetune_config import FineTuneConfig
    from privtune.device.client.finetune_job import FineTuneJob
    from privtune.device.client.job_model import JobModel
    from privtune.device.client.remote_top import RemoteTop
    from privtune.device.client.training_run import JobEvent
    from privtune.shared.errors import PrivTuneError

__all__ = [
    "AsyncClient",
    "AsyncFineTuneJob",
    "AsyncJobModel",
    "Client",
    "FineTuneConfig",
    "FineTuneJob",
    "JobEvent",
    "JobModel",
    "PrivTuneError",
    "RemoteTop",
]

_MODULES = {
    "AsyncClient": "privtune.device.client.async_client",
    "AsyncFineTuneJob": "privtune.device.client.async_client",
    "AsyncJobModel": "privtune.device.client.async_client",
    "Client": "privtune.device.client.client",
    "FineTuneConfig": "privtune.device.client.finetune_config",
    "FineTuneJob": "privtune.device.client.finetune_job",
    "JobEvent": "privtune.device.client.training_run",
    "JobModel": "privtune.device.client.job_model",
    "PrivTuneError": "privtune.shared.errors",
    "RemoteTop": "privtune.device.client.remote_top",
}


def __getattr__(name: str) -> Any:
    """Public names, imported at their first use: commands that need none of them start without."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
