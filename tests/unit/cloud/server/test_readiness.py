"""Readiness: each thing that keeps jobs from running makes it false with a reason; however many ask, it looks once."""

import shutil
import threading

import pytest

from privtune.cloud.db.store import Store, sqlite_url
from privtune.cloud.server import readiness
from privtune.cloud.server.readiness import Readiness, check_disk
from privtune.shared.errors import CloudUnreachable, StorageFull
from tests.support.disk import room_for


def test_a_disk_that_is_full_or_can_not_be_written_is_a_reason(tmp_path, monkeypatch):
    check_disk(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with room_for(1000), pytest.raises(StorageFull, match="can't be written"):
        check_disk(tmp_path)
    with pytest.raises(StorageFull, match="can't be written"):
        check_disk(tmp_path / "unmounted")
    monkeypatch.setattr(readiness, "LEAST_FREE_BYTES", 1 << 60)
    with pytest.raises(StorageFull, match=r"has [\d]+ MiB left"):
        check_disk(tmp_path)


def test_a_database_that_is_gone_is_a_reason(tmp_path):
    store = Store(sqlite_url(tmp_path / "data" / "cloud.sqlite"))
    Readiness([store.ping]).check()
    store.close()
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(StorageFull, match="database"):
        Readiness([store.ping]).check()


def test_many_probes_are_one_look(monkeypatch):
    looks = []
    checked = Readiness([lambda: looks.append(1)])
    for _ in range(100):
        checked.check()
    assert len(looks) == 1
    monkeypatch.setattr(readiness, "KNOWN_S", -1.0)
    checked.check()
    assert len(looks) == 2, "it looks again later"


def test_a_check_that_does_not_come_back_is_a_reason_and_holds_nobody(monkeypatch):
    monkeypatch.setattr(readiness, "PATIENCE_S", 0.05)
    begun, let_go = threading.Event(), threading.Event()

    def hang():
        begun.set()
        let_go.wait(10)

    checked = Readiness([hang])
    first = threading.Thread(target=checked.check)
    first.start()
    begun.wait(10)
    with pytest.raises(CloudUnreachable, match="has not answered"):
        checked.check()
    let_go.set()
    first.join(10)
    checked.check()
