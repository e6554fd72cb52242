"""Position by position through bottom, top and head equals `model.generate` of the whole model."""

import pytest
import torch

from privtune.shared.modeling.kv_cache import BottomCache, TopCache
from privtune.shared.modeling.partition import Partition
from tests.support.tiny_models import CONFIGS, DECODERS, LAYERS, tiny_lm

NEW = 30
CUTS = range(LAYERS)


def whole(model, ids_T):
    """Greedy tokens of plain transformers; nothing ends it early."""
    with torch.no_grad():
        out = model.generate(
            ids_T[None],
            attention_mask=torch.ones_like(ids_T[None]),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=1,
        )
    return out[0, len(ids_T) :].tolist()


def split(partition, cut, ids_T, chunk, tail=0):
    bottom, top, head = BottomCache(partition.bottom(cut)), TopCache(partition.top(cut, tail)), partition.head()
    last = TopCache(partition.tail(tail)) if tail else None
    tokens: list[int] = []
    pieces = list(torch.split(ids_T, chunk))
    with torch.no_grad():
        while len(tokens) < NEW:
            for piece_T in pieces:
                out_TD = top.extend(bottom.blocks(bottom.embed(piece_T)))
                out_TD = out_TD if last is None else last.extend(out_TD)
            tokens.append(int(head(out_TD[-1:]).argmax()))
            pieces = [torch.tensor(tokens[-1:])]
    assert bottom.past == top.past == len(ids_T) + NEW - 1
    return tokens


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("cut", CUTS)
def test_greedy_tokens_equal_the_whole_models(kind, cut):
    model = tiny_lm(kind)
    ids_T = torch.tensor([2, 9, 30, 11, 4, 50, 33])
    expected = whole(model, ids_T)
    partition = Partition(model)
    assert split(partition, cut, ids_T, chunk=7) == expected
    assert split(partition, cut, ids_T, chunk=3) == expected
    if cut < LAYERS - 1:
        assert split(partition, cut, ids_T, chunk=3, tail=1) == expected


@pytest.mark.parametrize("kind", DECODERS)
def test_texts_go_on_together_as_each_alone(kind):
    """Of different lengths, some longer than a sliding window; one joins later than the others."""
    partition = Partition(tiny_lm(kind))
    top = partition.top(1)
    lengths = (9, 1, 4, 2)
    h_NTD = torch.randn(4, 20, 32, generator=torch.Generator().manual_seed(3))
    alone, together = ([TopCache(top) for _ in lengths] for _ in range(2))
    for row, length in enumerate(lengths):
        for text in (alone[row], together[row]):
            text.extend(h_NTD[row, :length])
    for turn in range(10):
        rows = range(3 if turn < 3 else 4)
        new_ND = torch.stack([h_NTD[row, alone[row].past] for row in rows])
        out_ND = TopCache.extend_together([together[row] for row in rows], new_ND)
        expected_ND = torch.cat([alone[row].extend(new_ND[row : row + 1]) for row in rows])
        torch.testing.assert_close(out_ND, expected_ND, rtol=1e-4, atol=1e-5)
    assert [text.past for text in together] == [text.past for text in alone]
    assert [text.nbytes for text in together] == [text.nbytes for text in alone]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("lengths", [(9, 1, 4, 2), (3, 1, 2)])
def test_texts_begin_together_as_each_alone(kind, lengths):
    """Some longer than a sliding window, or all shorter; what follows continues from the right rows."""
    top = Partition(tiny_lm(kind)).top(1)
    h_NTD = torch.randn(len(lengths), 20, 32, generator=torch.Generator().manual_seed(3))
    alone, together = ([TopCache(top) for _ in lengths] for _ in range(2))
    out_NTD = TopCache.begin_together(together, h_NTD[:, : max(lengths)], lengths)
    for row, length in enumerate(lengths):
        expected_TD = alone[row].extend(h_NTD[row, :length])
        torch.testing.assert_close(out_NTD[row, :length], expected_TD, rtol=1e-4, atol=1e-5)
        for place in range(length, length + 6):
            new_1D = h_NTD[row, place : place + 1]
            torch.testing.assert_close(together[row].extend(new_1D), alone[row].extend(new_1D), rtol=1e-4, atol=1e-5)
    assert [text.past for text in together] == [text.past for text in alone]
    assert [text.nbytes for text in together] == [text.nbytes for text in alone]


def test_the_check_can_fail():
    """Without the earlier positions, or with their places wrong, other tokens come out."""
    model = tiny_lm("llama")
    ids_T = torch.tensor([2, 9, 30, 11, 4, 50, 33])
    partition = Partition(model)
    assert split(partition, 1, ids_T.flip(0), chunk=7) != whole(model, ids_T)


def test_sliding_layers_forget_and_full_layers_grow():
    partition = Partition(tiny_lm("mistral"))
    cache = TopCache(partition.top(1))
    cache.extend(torch.randn(8, 32))
    few = cache.nbytes
    cache.extend(torch.randn(8, 32))
    assert cache.nbytes == few > 0
    assert CONFIGS["mistral"]["sliding_window"] == 4
    full = TopCache(Partition(tiny_lm("llama")).top(1))
    full.extend(torch.randn(8, 32))
    few = full.nbytes
    full.extend(torch.randn(8, 32))
    assert full.nbytes == 2 * few
