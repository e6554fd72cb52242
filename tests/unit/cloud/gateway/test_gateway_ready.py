"""The gateway is ready unless its compute thread is stuck or it shuts down."""

import asyncio
import threading

import pytest

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.desk import Desk
from privtune.cloud.corpora import Corpora
from privtune.cloud.gateway import build_server, split_service
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.settings import Settings
from privtune.shared.errors import CloudUnreachable


def test_a_stuck_compute_thread_and_a_shutdown_are_reasons(tmp_path, store, jobs, keys, monkeypatch):
    begun, let_go = threading.Event(), threading.Event()
    monkeypatch.setattr(Desk, "forget", lambda self, job_id: (begun.set(), let_go.wait(30)))

    async def main():
        _, gateway = build_server(Settings(data_folder=tmp_path), jobs, keys, Teachings(store, Catalog(), Corpora()))
        gateway.check_ready()
        stuck = threading.Thread(target=jobs.deletions.when_deleted, args=("ftjob-x",))
        stuck.start()
        await asyncio.to_thread(begun.wait, 30)
        gateway.check_ready()  # work is no reason
        monkeypatch.setattr(split_service, "STUCK_S", -1.0)
        with pytest.raises(CloudUnreachable, match="compute thread has been at one piece of work"):
            gateway.check_ready()
        let_go.set()
        stuck.join(30)
        monkeypatch.setattr(split_service, "STUCK_S", 300.0)
        gateway.check_ready()
        await gateway.shutdown()
        with pytest.raises(CloudUnreachable, match="shutting down"):
            gateway.check_ready()

    asyncio.run(main())
