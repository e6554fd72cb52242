"""The sweep by age: at the start and again, whatever fails in between."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from sqlalchemy import update

from privtune.cloud.audit_log.check import entries
from privtune.cloud.db.tables import AuditRow
from privtune.cloud.server import sweep as module
from privtune.cloud.server.sweep import sweep, sweep_hourly
from privtune.cloud.settings import Settings
from privtune.shared.errors import StorageFull

DAY_S = 24 * 3600


def test_settings_say_what_goes(tmp_path, store):
    calls = []
    deletions = SimpleNamespace(sweep=lambda before: calls.append(before) or 0, drop_events=calls.append)
    packages = SimpleNamespace(drop_packages=lambda since: calls.append(since) or 0)

    def days(**settings):
        calls.clear()
        sweep(Settings(data_folder=tmp_path, **settings), store, deletions, packages)
        return [when and round((time.time() - when) / DAY_S, 3) for when in calls]

    assert days() == [None, 90, 30], "by default no job goes for its age, but what nobody misses"
    assert days(keep_jobs_days=2, keep_events_days=1, keep_packages_days=3) == [2, 1, 3]


def test_packages_that_go_are_in_the_audit_log_which_ends_by_age_too(tmp_path, store):
    nothing = SimpleNamespace(sweep=lambda before: 0, drop_events=lambda before: None)
    three = SimpleNamespace(drop_packages=lambda since: 3)
    sweep(Settings(data_folder=tmp_path, keep_packages_days=2), store, nothing, three)
    assert [(entry.action, entry.detail["count"]) for entry in entries(store)] == [("packages.dropped", 3)]
    with store.write() as session:
        session.execute(update(AuditRow).values(at=1))
    three.drop_packages = lambda since: 0
    sweep(Settings(data_folder=tmp_path, keep_audit_days=1), store, nothing, three)
    assert [entry.action for entry in entries(store)] == ["log.pruned"]


@pytest.mark.parametrize("error", [StorageFull("read-only for now"), ValueError("a defect")])
def test_a_failure_is_tried_again(tmp_path, monkeypatch, error):
    monkeypatch.setattr(module, "_EVERY_S", 0.01)
    calls = []

    def fail(before):
        calls.append(before)
        raise error

    async def main():
        task = asyncio.create_task(
            sweep_hourly(Settings(data_folder=tmp_path), None, SimpleNamespace(sweep=fail), SimpleNamespace())
        )
        while len(calls) < 2:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(main(), 10))
