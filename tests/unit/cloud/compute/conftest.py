import pytest
import torch

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from tests.support.tiny_models import save_model


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Offers `enc`, a tiny BERT for two classes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "enc", "bert", "classification", num_labels=2)
    return Host(Catalog([f"enc={folder / 'enc'}"]), folder / "bottoms")
