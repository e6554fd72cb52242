"""Rows of growing texts: the mechanism's distribution, drawn once for the tokens up to them, in whatever pieces."""

import contextlib
import hashlib

import numpy as np
import pytest
import torch

from privtune.device.inference.generation.growing_rows import GrowingText, RowSource, _key
from privtune.device.noise.randomness import noise_source
from privtune.device.noise.registry import build
from privtune.device.release.noising import Noise
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.codec import decode
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.partition import Partition
from tests.support.noise_contexts import model_context
from tests.support.tiny_models import WIDTH, tiny_lm

IDS = [2, 9, 30, 11, 4, 50, 33]


@pytest.fixture(scope="module")
def context():
    return model_context(Partition(tiny_lm("llama")).bottom(1))


@pytest.fixture
def source(context, tmp_path):
    with contextlib.ExitStack() as ending:

        def make(name, **params):
            mechanism = build(MechanismSpec(name=name, params=params), context)
            store = ending.enter_context(
                contextlib.closing(ReleaseStore(tmp_path / "rows.sqlite", mechanism.fingerprint(), 1 << 24))
            )
            return RowSource(
                bottom=context.bottom,
                noise=Noise(mechanism=mechanism, importance=None, source=noise_source()),
                store=store,
                codec="fp32",
            )

        yield make


def rows(source, *pieces):
    text = GrowingText(source)
    for piece in pieces:
        text.extend(piece)
    return decode(text.encoded(0), len(text.ids), WIDTH, "fp32"), text


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
    digest = hashlib.sha256()
    keys = [_key(digest, token) for token in IDS]
    kept = made.store.get_many(keys)
    noised_1TD = torch.from_numpy(np.stack([np.frombuffer(kept[key].data, "<f4") for key in keys]).copy())[None]
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
