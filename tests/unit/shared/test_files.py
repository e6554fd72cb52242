"""Files appear whole or not at all, and a lock has one holder."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from privtune.shared import files
from privtune.shared.files import held, make_folder, replacing_file, replacing_folder, write_json


def test_a_reader_never_sees_a_part_of_a_file(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})

    def fail_half_way():
        with replacing_file(path) as scratch:
            scratch.write_text("{")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert path.read_text() == '{\n "step": 1\n}'
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_private_file_is_its_owners(tmp_path):
    write_json(tmp_path / "key.json", {}, private=True)
    assert (tmp_path / "key.json").stat().st_mode & 0o077 == 0


def test_a_folder_takes_the_place_of_the_older_one_only_when_it_is_whole(tmp_path):
    target = tmp_path / "adapter"
    with replacing_folder(target) as scratch:
        (scratch / "weights").write_text("1")

    def fail_half_way():
        with replacing_folder(target) as scratch:
            (scratch / "weights").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert (target / "weights").read_text() == "1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_a_resumable_folder_goes_on_with_what_was_there(tmp_path):
    target = tmp_path / "bottom"

    def stop_half_way():
        with replacing_folder(target, resumable=True) as scratch:
            (scratch / "one").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert not target.exists()
    with replacing_folder(target, resumable=True) as scratch:
        assert (scratch / "one").read_text() == "1"
        (scratch / "two").write_text("2")
    assert sorted(entry.name for entry in target.iterdir()) == ["one", "two"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["bottom"]


def test_the_names_of_new_folders_are_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files, "flush", flushed.append)
    make_folder(tmp_path / "home" / "jobs", 0o700)
    assert flushed == [tmp_path, tmp_path / "home"]
    assert (tmp_path / "home" / "jobs").stat().st_mode & 0o777 == 0o700
    make_folder(tmp_path / "home" / "jobs")
    assert len(flushed) == 2, "one that exists is left alone"
    with replacing_folder(tmp_path / "home" / "bottoms" / "one") as scratch:
        (scratch / "weights").write_text("1")
    bottoms = tmp_path / "home" / "bottoms"
    assert flushed[2:] == [tmp_path / "home", scratch / "weights", scratch, bottoms]


def test_any_text_of_an_owner_can_be_stored(tmp_path):
    write_json(tmp_path / "labels.json", ["grün", "\ud800"])
    assert json.loads((tmp_path / "labels.json").read_text()) == ["grün", "\ud800"]


HOLD = """
import sys
import threading
from pathlib import Path
from privtune.shared.files import held
with held(Path(sys.argv[1])) as mine:
    print(mine)
"""


def other_process_holds(lock):
    command = [sys.executable, "-c", HOLD, str(lock)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_lock_has_one_holder_and_goes_with_its_process(tmp_path):
    lock = tmp_path / "lock"
    with held(lock) as mine:
        assert mine
        assert other_process_holds(lock) == "False"
    assert other_process_holds(lock) == "True"


def test_a_lock_can_be_waited_for(tmp_path):
    lock, order = tmp_path / "lock", []

    def second():
        with held(lock, wait=True) as mine:
            order.append(("second", mine))

    with held(lock):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append(("first", True))
    thread.join(10)
    assert order == [("first", True), ("second", True)]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_as_the_cause(tmp_path, monkeypatch, number):
    def refuse(descriptor, operation):
        raise OSError(number, "as NFS answers")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="its file system has no locks") as caught, held(tmp_path / "lock"):
        pass
    assert caught.value.errno == number


@pytest.mark.skipif(os.name == "nt", reason="Windows flushes no folders")
def test_files_and_the_folders_that_name_them_are_flushed(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def watched(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with replacing_folder(tmp_path / "made") as scratch:
        (scratch / "inner").mkdir()
        (scratch / "inner" / "tensors").write_text("1")
    made = tmp_path / "made"
    assert {one.stat().st_ino for one in (made / "inner" / "tensors", made / "inner", made, tmp_path)} <= set(flushed)
    flushed.clear()
    write_json(tmp_path / "facts.json", {})
    assert {(tmp_path / "facts.json").stat().st_ino, tmp_path.stat().st_ino} <= set(flushed)
    assert flushed[-1] == tmp_path.stat().st_ino, "the name comes last"
