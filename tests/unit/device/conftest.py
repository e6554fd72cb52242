"""One thread for torch, and a tiny real bottom with what mechanisms may know of it."""

import pytest
import torch

from tests.support.noise_contexts import tiny_bottom, tiny_context


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bottom():
    return tiny_bottom()


@pytest.fixture(scope="session")
def context(bottom):
    return tiny_context(bottom)
