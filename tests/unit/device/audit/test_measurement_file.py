"""Measurements in one file: found again, replaced, safe from damage and from writers at the same time."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from privtune.device.audit.measurement_file import MeasurementFile
from privtune.shared.errors import StorageFull


def test_what_is_kept_is_found_again_and_replaced(tmp_path):
    kept = MeasurementFile(tmp_path / "new" / "cells.jsonl", private=True)
    assert kept.find("b") is None
    kept.keep("b", {"value": 1})
    kept.keep("a", {"value": 2})
    kept.keep("b", {"value": 3})
    again = MeasurementFile(kept.path)
    assert again.all() == kept.all() == {"a": {"value": 2}, "b": {"value": 3}}
    assert list(again.all()) == ["a", "b"]
    assert [json.loads(line)["key"] for line in kept.path.read_text().splitlines()] == ["a", "b"]
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600


def test_a_damaged_line_costs_its_own_measurement_only(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_text('{"key":"a","value":1}\n{"key":"b","va\n[]\n{"value":2}\n')
    kept = MeasurementFile(path)
    assert kept.all() == {"a": {"value": 1}}
    kept.keep("b", {"value": 2})
    assert MeasurementFile(path).all() == {"a": {"value": 1}, "b": {"value": 2}}


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "cells.jsonl"
    writers = [MeasurementFile(path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: [one[1].keep(f"{one[0]}-{n}", {"n": n}) for n in range(5)], enumerate(writers)))
    assert len(MeasurementFile(path).all()) == 40


def test_a_file_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFull, match=r"cells\.jsonl can't be written"):
        MeasurementFile(tmp_path / "file" / "cells.jsonl").keep("a", {})
