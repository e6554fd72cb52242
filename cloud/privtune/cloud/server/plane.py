"""What both servers share: database, jobs, API keys, devices and models of one data folder, held by one process."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from privtune.cloud.auth import ApiKeys, Devices
from privtune.cloud.auth.authority import open_authority
from privtune.cloud.catalog import Catalog
from privtune.cloud.corpora import Corpora
from privtune.cloud.db.store import Store, open_store
from privtune.cloud.jobs.job_files import JobFiles
from privtune.cloud.jobs.notify import Notifier
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.limits import OwnerLimits
from privtune.cloud.settings import Settings
from privtune.cloud.storage import open_artifacts
from privtune.shared.errors import InvalidInput, StorageFull
from privtune.shared.files import held, make_folder, write_text

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The parts that both servers share."""

    store: Store
    jobs: Jobs
    keys: ApiKeys
    devices: Devices
    teachings: Teachings


@contextmanager
def open_plane(settings: Settings, catalog: Catalog, corpora: Corpora | None = None) -> Iterator[Plane]:
    """Open the database, and the authority, which the first start makes.

    Jobs that a crash left running wait for their devices once their leases have run out.

    Raises InvalidInput when another process serves the data folder, StorageFull when it can't be written,
    and as `open_store` and `ArtifactStore.reach`.
    """
    with _only_server(settings.data_folder), open_store(settings.data_folder, settings.database_url) as store:
        notifier = Notifier(settings.max_event_streams)
        artifacts = open_artifacts(settings.data_folder, settings.artifacts_url)
        artifacts.reach()
        limits = OwnerLimits(store, settings.limits, artifacts)
        jobs = Jobs(
            store,
            limits=limits,
            notifier=notifier,
            files=JobFiles(artifacts),
            lease_s=settings.lease_s,
            give_up_days=settings.give_up_days,
        )
        teachings = Teachings(
            store,
            catalog,
            corpora or Corpora(),
            max_kept=settings.max_teachings_per_owner,
            max_step_bytes=settings.max_memory_bytes,
            place=_place(settings.data_folder),
        )
        authority = open_authority(settings.tls_folder)
        devices = Devices(store, authority, life_s=settings.certificate_days * 86400)
        yield Plane(store=store, jobs=jobs, keys=ApiKeys(store), devices=devices, teachings=teachings)


def _place(folder: Path) -> str:
    """Names a data folder among those of other clouds, also after it was moved. Raises StorageFull."""
    file = folder / "place"
    try:
        if not file.exists():
            write_text(file, secrets.token_hex(16))
        return file.read_text("utf-8")
    except OSError as error:
        raise StorageFull(f"Can't write {file}: {error.strerror}.") from error


@contextmanager
def _only_server(folder: Path) -> Iterator[None]:
    """Two processes on one data folder would write into each other's checkpoints and adapters."""
    with ExitStack() as stack:
        try:
            make_folder(folder)
            alone = stack.enter_context(held(folder / "serve.lock"))
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise InvalidInput(
                    f"The file system of {folder} has no file locks (NFS without a lock service?), so a second cloud "
                    "on it could go unnoticed; use another --data.",
                    detail=str(error),
                ) from error
            raise StorageFull(f"Can't write to the data folder {folder}: {error.strerror}.") from error
        if not alone:
            raise InvalidInput(f"Another privtune-cloud serves {folder} already; use another --data.")
        yield
