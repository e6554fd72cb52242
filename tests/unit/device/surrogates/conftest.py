"""One set of recognisers for all tests of this folder: loading them takes seconds."""

from __future__ import annotations

import pytest

from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.job_spec import SurrogateSpec

OWN_TERMS = ("Project Bluebird", "zeta 9")


@pytest.fixture(scope="session")
def surrogates() -> Surrogates:
    return Surrogates(SurrogateSpec(replace="identifying"), b"s" * 32, OWN_TERMS)
