import pytest
import torch

from tests.support.owner import Owner
from tests.support.plane import Plane
from tests.support.world import InProcessCloud, ProcessCloud, build_world


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=[InProcessCloud, ProcessCloud], ids=["in-process", "processes"])
def world(request, tmp_path):
    """The same test body against a cloud in this process and against a real one."""
    built = build_world(tmp_path, request.param)
    yield built
    built.cloud.stop()


@pytest.fixture
def local_world(tmp_path):
    """A cloud in this process only."""
    built = build_world(tmp_path)
    yield built
    built.cloud.stop()


@pytest.fixture
def owner(world, capsys):
    """`privtune` at a terminal, before the world of the test or of its module, which must be a cloud of processes."""
    return Owner(world=world, capsys=capsys)


@pytest.fixture
def plane(tmp_path):
    """A control plane over real HTTP, without a gateway."""
    made = Plane(tmp_path)
    yield made
    made.stop()
