"""A cloud may lie in any field of any message: the job ends well, or with an error of the table that can be read.

Some lies are told in each run of the suite; `make test-slow` tells them all.
"""

from __future__ import annotations

import time
from itertools import product

import pytest

from privtune.shared.errors import InternalError, PrivTuneError
from tests.support.lying import Lie, lies, lying_links
from tests.support.running import run
from tests.support.world import build_world

EVERY = 25
PATIENCE_S = 1.0
ENDS_S = 60.0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("lies"))
    yield built
    built.cloud.stop()


def told(number: int, tail: int, lie: Lie):
    return pytest.param(tail, lie, id=f"{lie}{'-tail' * tail}", marks=[] if number % EVERY == 0 else [pytest.mark.slow])


@pytest.mark.timeout(2 * ENDS_S)
@pytest.mark.parametrize(
    ("tail", "lie"),
    [
        told(number, tail, lie)
        for number, (tail, lie) in enumerate(product((0, 1), lies()))
        if tail or lie.message != "TABLE"  # sent for ids only
    ],
)
def test_a_lie_is_an_error_of_the_table_or_changes_nothing(world, tmp_path, monkeypatch, tail, lie):
    ids = {"mechanism": {"name": "codes", "params": {"codes": 8, "dims": 2}}} if tail else {}
    spec = world.spec(tail=tail, **ids, train={"max_steps": 2, "checkpoint_every": 1, "batch_size": 4})
    settings = world.device(home=tmp_path / "home", no_progress_timeout=PATIENCE_S)
    liar = lying_links(monkeypatch, lie)
    began, error = time.monotonic(), None
    try:
        run(world, spec, settings=settings)
    except PrivTuneError as raised:
        error = raised
    assert liar.told
    assert time.monotonic() - began < ENDS_S
    assert not isinstance(error, InternalError)
    said = "" if error is None else error.message + error.detail
    assert said.isprintable()
    assert len(said) < 5000
