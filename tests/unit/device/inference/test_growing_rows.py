"""Rows of growing texts: the mechanism's distribution, drawn once for the tokens up to them, in whatever pieces."""

import contextlib
import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from privtune.device.data.encode import EncodedDataset
from privtune.device.inference.generation.growing_rows import GrowingText, RowSource
from privtune.device.noise.randomness import noise_source
from privtune.device.noise.registry import build
from privtune.device.release.beginnings import Beginnings, row_keys
from privtune.device.release.noising import Noise
from privtune.device.release.perturber import Perturber
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.codec import decode, encode
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.partition import Partition
from tests.support.noise_contexts import model_context
from tests.support.tiny_models import WIDTH, tiny_lm

IDS = [2, 9, 30, 11, 4, 50, 33]


@dataclass(frozen=True, kw_only=True)
class Source(RowSource):
    """With the store of whole records."""

    store: ReleaseStore


@pytest.fixture(scope="module")
def context():
    return model_context(Partition(tiny_lm("llama")).bottom(1))


@pytest.fixture
def source(context, tmp_path):
    with contextlib.ExitStack() as ending:

        def make(name, codec="fp32", **params):
            mechanism = build(MechanismSpec(name=name, params=params), context)
            store = ending.enter_context(
                contextlib.closing(ReleaseStore(tmp_path / "rows.sqlite", mechanism.fingerprint(), 1 << 24))
            )
            _, sent = mechanism.sent_as(codec)
            beginnings = Beginnings(store, sent, at_embedding=mechanism.injection == "embedding")
            return Source(
                bottom=context.bottom,
                noise=Noise(mechanism=mechanism, importance=None, source=noise_source()),
                beginnings=ending.enter_context(contextlib.closing(beginnings)),
                codec=codec,
                store=store,
            )

        yield make


def rows(source, *pieces):
    text = GrowingText(source)
    for piece in pieces:
        text.extend(piece)
    mechanism = source.noise.mechanism
    sent_TW = decode(text.encoded(0), len(text.ids), *mechanism.sent_as("fp32"))
    return sent_TW if mechanism.table is None else mechanism.table.of_record(sent_TW), text


def records(source, *texts):
    """What is released of records with these ids, and a function that asks for it once more."""
    perturber = Perturber(
        source.bottom,
        source.noise.mechanism,
        source.noise.source,
        source.store,
        source.codec,
        beginnings=source.beginnings,
    )
    data = EncodedDataset(ids=tuple(np.array(ids, dtype=np.int32) for ids in texts))

    def released():
        found = perturber.release(data, np.arange(len(data))).releases
        return [decode(one.data, one.rows, WIDTH, source.codec) for one in found]

    return released(), released


def test_without_noise_the_rows_are_the_bottoms(source, context):
    whole, _ = rows(source("none"), IDS)
    ids_1T = torch.tensor([IDS])
    torch.testing.assert_close(torch.from_numpy(whole), context.bottom(ids_1T, torch.ones_like(ids_1T))[0])


@pytest.mark.parametrize("injection", ["embedding", "cut"])
@pytest.mark.parametrize("name", ["dchi", "shared"])
def test_rows_are_drawn_once_however_the_text_comes(source, name, injection):
    made = source(name, injection=injection)
    whole, first = rows(made, IDS)
    assert first.drawn == len(IDS)
    pieces, second = rows(made, IDS[:3], IDS[3:4], IDS[4:])
    assert second.drawn == 0
    np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-5)
    if injection == "cut":
        assert second.encoded(0) == first.encoded(0)
    longer, third = rows(made, IDS, [7, 8])
    assert third.drawn == 2
    np.testing.assert_allclose(longer[: len(IDS)], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["shared", "codes"])
def test_a_prompt_sends_the_ids_of_its_record(source, name):
    """Across the two forms in which rows are kept: whole records, and rows one by one."""
    made = source(name, **({"epsilon_code": 0.1} if name == "codes" else {"epsilon_cluster": 0.1, "cluster_size": 4}))
    perturber = Perturber(
        made.bottom, made.noise.mechanism, made.noise.source, made.store, "fp32", beginnings=made.beginnings
    )
    (record,) = perturber.release(EncodedDataset(ids=(np.array(IDS, dtype=np.int32),)), np.arange(1)).releases
    text = GrowingText(made)
    text.extend([*IDS, 8])
    assert text.drawn == 1
    assert len(text.encoded(0)) == len(IDS) + 1
    assert text.encoded(0)[: len(IDS)] == record.data


def test_another_beginning_is_another_text(source):
    made = source("dchi", injection="cut")
    first, _ = rows(made, IDS)
    other, text = rows(made, [3, *IDS[1:]])
    assert text.drawn == len(IDS)
    assert not np.isclose(first, other).all(axis=1).any()


@pytest.mark.parametrize("injection", ["embedding", "cut"])
def test_rows_of_several_texts_together_are_each_ones_own(source, injection):
    origin = source("dchi", noise_ratio=1, injection=injection)
    begun, going_on = [IDS[:4], IDS[:2], IDS[:2]], [[5, 8, 9], [7, 7, 6], [7, 7, 6]]
    texts = [GrowingText(origin) for _ in begun]
    for text, ids in zip(texts, begun, strict=True):
        text.extend(ids)
    for ids in zip(*going_on, strict=True):
        GrowingText.extend_together(texts, ids)
    for text, first, further in zip(texts, begun, going_on, strict=True):
        assert text.ids == [*first, *further]
        again_TD, fresh = rows(origin, first, further)
        assert fresh.drawn == 0
        sent_TD = decode(text.encoded(0), len(text.ids), WIDTH, "fp32")
        np.testing.assert_allclose(sent_TD, again_TD, rtol=1e-4, atol=1e-5)
    assert [text.drawn for text in texts] == [7, 3, 0]  # what texts have in common is drawn once


@pytest.mark.parametrize("injection", ["embedding", "cut"])
def test_a_prompt_that_was_trained_on_sends_the_rows_of_its_record(source, injection):
    made = source("dchi", injection=injection)
    (record, other), _ = records(made, IDS, [*IDS[:3], 20, 21])
    prompt, text = rows(made, IDS[:5], [8])
    assert text.drawn == 1
    np.testing.assert_allclose(prompt[:5], record[:5], rtol=1e-4, atol=1e-5)
    if injection == "cut":
        assert text.encoded(0)[: 5 * 4 * WIDTH] == record[:5].tobytes()
    assert not np.isclose(record[:3], other[:3]).all(axis=1).any()  # records stay independent of each other
    assert GrowingText(made).missing([*IDS[:3], 20, 21]) == 0


@pytest.mark.parametrize("injection", ["embedding", "cut"])
def test_a_record_sends_the_rows_of_what_was_written_before(source, injection):
    made = source("dchi", injection=injection)
    prompt, _ = rows(made, IDS[:4])
    (record, other), again = records(made, IDS, [3, *IDS])
    np.testing.assert_allclose(record[:4], prompt, rtol=1e-4, atol=1e-5)
    assert not np.isclose(record[:4], other[1:5]).all(axis=1).any()
    longer, text = rows(made, IDS)
    assert text.drawn == 0
    np.testing.assert_allclose(longer, record, rtol=1e-4, atol=1e-5)
    assert [one.tobytes() for one in again()] == [record.tobytes(), other.tobytes()]


def test_a_rounded_record_is_sent_again_as_it_was(source):
    made = source("dchi", codec="bf16")
    (record,), _ = records(made, IDS)
    text = GrowingText(made)
    text.extend(IDS)
    assert text.drawn == 0
    assert text.encoded(0) == encode(record, "bf16")


def test_the_rows_to_draw_are_known_before(source):
    made = source("dchi")
    rows(made, IDS[:4])
    text = GrowingText(made)
    assert text.missing(IDS) == len(IDS) - 4
    assert text.ids == []
    text.extend(IDS[:5])
    assert text.missing(IDS[5:]) == 2


def test_noise_at_the_embedding_goes_through_the_blocks(source, context):
    """The row at the cut is what the blocks make of the noised rows so far, as in training."""
    made = source("dchi", injection="embedding")
    at_cut, _ = rows(made, IDS[:2], IDS[2:])
    keys = row_keys(hashlib.sha256(), IDS)
    kept = made.beginnings.known(keys)
    noised_1TD = torch.stack([kept[key] for key in keys])[None]
    mask_1T = torch.ones(1, len(IDS), dtype=torch.long)
    torch.testing.assert_close(torch.from_numpy(at_cut), context.bottom.blocks(noised_1TD, mask_1T)[0])
    clean_1TD = context.bottom.embed(torch.tensor([IDS]), mask_1T)
    assert (noised_1TD - clean_1TD).norm(dim=-1).min() > 0.1


@pytest.mark.parametrize(
    ("name", "params", "why"),
    [
        ("pool", {}, "shortens records"),
        ("custext", {"injection": "cut"}, "second draw"),
        ("shared", {"injection": "cut", "target": "mixture"}, "second draw"),
    ],
)
def test_mechanisms_that_need_a_whole_record_are_refused(source, name, params, why):
    with pytest.raises(InvalidInput, match=why):
        source(name, **params)
