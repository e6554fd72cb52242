"""One process per data folder, and one clear line where locks are missing."""

import errno

import pytest

from privtune.cloud.catalog import Catalog
from privtune.cloud.server.plane import open_plane
from privtune.cloud.settings import Settings
from privtune.shared.errors import InvalidInput


def test_a_data_folder_has_one_server(tmp_path):
    settings = Settings(data_folder=tmp_path / "data")
    second = open_plane(settings, Catalog())
    with open_plane(settings, Catalog()), pytest.raises(InvalidInput, match="Another privtune-cloud serves"):
        second.__enter__()
    with open_plane(settings, Catalog()) as plane:
        assert plane.keys.list() == []


def test_a_file_system_without_locks_is_one_clear_line(tmp_path, monkeypatch):
    def without_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", without_locks)
    with pytest.raises(InvalidInput, match="no file locks"), open_plane(Settings(data_folder=tmp_path), Catalog()):
        pass
