"""Whatever frames a peer sends, in whatever order: either side ends the stream with an error of the table.

The streams of `frames.corpus` reach every step that a long search found (`make fuzz`); hypothesis twists others.
"""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.frame_corpus import load
from tests.support.frame_fuzzing import SIDES, Sides, honest, packed, twisted


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    torch.set_num_threads(1)
    return Sides(tmp_path_factory.mktemp("sides"))


@pytest.mark.parametrize("side", SIDES)
def test_an_honest_stream_ends_well(sides, side):
    assert sides.feed(side, packed(honest(side))) is None


def test_the_corpus_breaks_neither_side(sides):
    corpus = load()
    assert {side for side, _ in corpus} == set(SIDES)
    for side, stream in corpus:
        sides.feed(side, stream)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SIDES), st.integers(0, 2**32 - 1))
def test_twisted_frames_break_neither_side(sides, side, seed):
    sides.feed(side, twisted(packed(honest(side)), random.Random(seed)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SIDES), st.binary(max_size=300))
def test_any_bytes_break_neither_side(sides, side, stream):
    sides.feed(side, stream)
