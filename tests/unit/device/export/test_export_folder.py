"""A folder appears whole or not at all."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from privtune.device.cli.signals import ending_in_order
from privtune.device.export.export_folder import check_room, check_target, new_folder
from privtune.shared.errors import InvalidInput, StorageFull


def test_it_appears_with_everything_in_it(tmp_path):
    (tmp_path / "there").mkdir()
    for target in (tmp_path / "there", tmp_path / "new" / "inner"):
        with new_folder(target) as scratch:
            (scratch / "file").write_text("x")
            assert not (target / "file").exists()
        assert (target / "file").read_text() == "x"
    assert {path.name for path in tmp_path.iterdir()} == {"there", "new"}


def test_it_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("privtune.shared.files.flush", lambda path: flushed.append((path.name, target.exists())))
    monkeypatch.setattr("privtune.device.export.export_folder.flush", lambda path: flushed.append((path.name, "last")))
    target = tmp_path / "out"
    with new_folder(target) as scratch:
        (scratch / "file").write_text("x")
    assert flushed == [("file", False), (scratch.name, False), (tmp_path.name, "last")]


def test_ctrl_c_leaves_nothing(tmp_path):
    def interrupted():
        with new_folder(tmp_path / "out") as scratch:
            (scratch / "half").write_text("x")
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_sigterm_within_the_command_leaves_nothing(tmp_path):
    def ended():
        with ending_in_order(), new_folder(tmp_path / "out") as scratch:
            (scratch / "half").write_text("x")
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as told:
        ended()
    assert told.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "old").write_text("x")
    with new_folder(tmp_path / "out") as scratch:
        assert list(scratch.iterdir()) == []


def test_a_disk_that_can_not_be_written(tmp_path):
    with pytest.raises(StorageFull, match=r"No space left.*free room"), new_folder(tmp_path / "out"):
        Path("/dev/full").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nobody_can_write_is_not_a_full_disk():
    wanted = r"/proc/x can't be written: .*choose a folder that you can write to"
    with pytest.raises(StorageFull, match=wanted) as told, new_folder(Path("/proc/x")):
        pass
    assert "room" not in str(told.value)


def test_a_target_in_use_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    for name in ("file", "link", "full"):
        with pytest.raises(InvalidInput, match="not empty"):
            check_target(tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious"


def test_room_is_asked_for_before_it_is_taken(tmp_path):
    check_room(tmp_path, 1000)
    with pytest.raises(StorageFull, match=r"takes about [\d,]+ MB .* nothing was written"):
        check_room(tmp_path, 1 << 60)
