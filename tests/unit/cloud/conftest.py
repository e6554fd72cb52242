import json
import shutil

import pytest

from privtune.cloud.auth import ApiKeys
from privtune.cloud.db.database import sqlite_url
from privtune.cloud.db.store import Store
from privtune.cloud.jobs.service import Jobs
from tests.support.builders import least_spec
from tests.support.databases import address


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """A SQLite file at this version's schema."""
    file = tmp_path_factory.mktemp("sqlite") / "cloud.sqlite"
    store = Store(sqlite_url(file))
    store.upgrade()
    store.close()
    return file


@pytest.fixture
def sqlite_store(tmp_path, migrated):
    shutil.copy(migrated, tmp_path / "cloud.sqlite")
    opened = Store(sqlite_url(tmp_path / "cloud.sqlite"))
    yield opened
    opened.close()


@pytest.fixture
def postgres_store(postgres):
    opened = Store(postgres.new())
    yield opened
    opened.close()
    postgres.drop(address(opened))


@pytest.fixture(params=["sqlite", "postgres"])
def store(request):
    """A database of either kind: what must hold on both takes this one."""
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture
def another(store):
    """The same database in another process."""
    opened = Store(address(store))
    yield opened
    opened.close()


@pytest.fixture
def jobs(store):
    return Jobs(store)


@pytest.fixture
def keys(store):
    return ApiKeys(store)


@pytest.fixture
def spec():
    return least_spec()


@pytest.fixture
def model_folder(tmp_path):
    """What the catalog reads of a model: a BERT of 4 blocks."""
    folder = tmp_path / "tiny-bert"
    folder.mkdir()
    config = {"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 32, "vocab_size": 99}
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder
