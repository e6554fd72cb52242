import json

import pytest

from privtune.cloud.auth import ApiKeys
from privtune.cloud.db.store import Store, sqlite_url
from privtune.cloud.jobs.service import Jobs
from tests.support.builders import least_spec


@pytest.fixture
def store(tmp_path):
    opened = Store(sqlite_url(tmp_path / "cloud.sqlite"))
    opened.upgrade()
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
