"""Padding: records of different lengths look alike, and the device finds its own rows again."""

from __future__ import annotations

import numpy as np
import pytest

from privtune.device.data.encode import EncodedDataset
from privtune.device.noise.randomness import noise_source
from privtune.device.noise.registry import build
from privtune.device.noise.tables.public_tables import PublicTables
from privtune.device.privacy.statements import padded_statement
from privtune.device.release.filler import Padding
from privtune.device.release.perturber import Perturber
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.job_spec import MechanismSpec, TrainSpec

CLS, SEP, END = 2, 3, 0  # special ids of `tiny_context`; END stands for a second one


@pytest.fixture
def padding(context):
    return Padding(lengths=(4, 8, 16), front=False, dropped=True, context=context)


@pytest.fixture
def at_front(context):
    return Padding(lengths=(8,), front=True, dropped=False, context=context)


def row(*ids):
    return np.array(ids, dtype=np.int32)


def test_each_record_gets_the_first_length_that_holds_it(padding):
    assert padding.rows(np.array([2, 4, 5, 8, 9, 16])).tolist() == [4, 4, 8, 8, 16, 16]


@pytest.mark.parametrize(
    ("ids", "place"),
    [
        (row(CLS, 9, 10, SEP), 3),
        (row(CLS, SEP), 1),
        (row(CLS, 9, SEP, 10, SEP), 4),  # a pair keeps its separator
        (row(9, 10, SEP, END), 2),
        (row(9, 10, SEP, 11), 2),  # a turn's end and its line break
        (row(9, 10, 11), 3),
        (row(SEP), 1),
    ],
)
def test_filler_stands_before_what_closes_a_text(padding, ids, place):
    assert padding.place(ids) == place


@pytest.mark.parametrize(("ids", "place"), [(row(CLS, 9, 10), 1), (row(9, 10), 0), (row(CLS, SEP), 1), (row(9), 0)])
def test_in_front_it_stands_after_what_opens_it(at_front, ids, place):
    assert at_front.place(ids) == place
    filled = at_front.fill(ids, noise_source())
    assert len(filled) == 8
    assert filled[-1] == ids[-1]  # the row that is read is the text's last


def test_a_record_is_found_again_among_its_filler(padding, context):
    for ids in (row(CLS, 9, 10, 11, SEP), row(9, 10), row(CLS, 9, 10, SEP), row(CLS, SEP)):
        filled = padding.fill(ids, noise_source())
        own = padding.own(ids)
        assert len(filled) in padding.lengths
        assert filled[own].tolist() == ids.tolist()
        words = np.delete(filled, own)
        assert not set(words.tolist()) & context.special_ids


def test_filler_has_the_public_frequencies_of_words(context):
    padding = Padding(lengths=(20_000,), front=False, dropped=True, context=context)
    words = padding.fill(row(CLS, SEP), noise_source())[1:-1]
    counts = np.bincount(words, minlength=len(context.tokens))[context.usable_ids.numpy()]
    expected = 19_998 * PublicTables(context, "embedding").frequency_U
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected.max())
    assert padding.fill(row(CLS, SEP), noise_source()).tolist()[1:-1] != words.tolist()


def test_releases_show_lengths_of_the_list_alone_and_are_drawn_once(bottom, context, padding, tmp_path):
    ids = tuple(row(CLS, *range(9, 9 + length), SEP) for length in range(1, 14))
    data = EncodedDataset(ids=ids)
    store = ReleaseStore(tmp_path / "s.sqlite", "x", 1 << 20)
    mechanism = build(MechanismSpec(name="dchi"), context)
    perturber = Perturber(bottom, mechanism, noise_source(), store, "fp32", padding=padding)
    first = perturber.release(data, np.arange(len(ids)))
    assert set(first.lengths_B.tolist()) == {4, 8, 16}
    assert first.lengths_B.tolist() == perturber.lengths(data).tolist()
    assert first.read_B.tolist() == data.lengths.tolist()
    assert [r.data for r in perturber.release(data, np.arange(len(ids))).releases] == [r.data for r in first.releases]
    store.close()


def test_a_statement_says_what_is_hidden_from_whom(context):
    clean, noised = (build(MechanismSpec(name=name, params=params), context).statement() for name, params in
                     (("none", {}), ("gaussian", {})))  # fmt: skip
    assert "32, 64 or 128 tokens" in padded_statement(noised, (32, 64, 128)).caveats[0]
    assert "a record's bound covers the rest of its length" in padded_statement(noised, (64,)).caveats[0]
    assert "without noise it reads the words" in padded_statement(clean, (64,)).caveats[0]
    visible = "The cloud sees how many vectors each record has."
    for statement in (clean, noised):
        assert visible in statement.caveats
        assert visible not in padded_statement(statement, (64,)).caveats


def test_lengths_end_with_the_limit_of_the_job():
    train = TrainSpec(max_length=64, pad_to=(16, 32))
    assert train.padded(None) == (16, 32, 64)
    assert train.padded(512) == (16, 32, 64)
    assert TrainSpec(pad_to=(16, 128)).padded(24) == (16, 24)  # the default limit gives way to a model's
    assert TrainSpec().padded(None) == ()
    with pytest.raises(ValueError, match="80 is not a length from 2 to max_length, 64"):
        TrainSpec(max_length=64, pad_to=(80,))
