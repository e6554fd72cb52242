"""Texts are cut into pieces without losing a token, at sentence ends where there are any."""

from __future__ import annotations

import time

import numpy as np
import pytest

from privtune.cloud.compute.teaching.pieces import _packed, cut_into_pieces
from privtune.shared.errors import DataInvalid
from tests.support.tiny_models import tiny_tokenizer


def pieces_of(texts, labels=None, max_length=8, most=1000):
    return cut_into_pieces(tiny_tokenizer(), texts, labels, max_length=max_length, most=most, seed=0)


def test_sentences_stay_whole_where_they_fit():
    found = pieces_of(["w1 w2 w3 w4. w5 w6 w7 w8 w9"])
    inner = sorted(ids_T[1:-1].tolist() for ids_T in found.ids)
    assert [len(ids_T) for ids_T in inner] == [5, 5] or len(inner) == 2
    assert all(ids_T[0] == 2 and ids_T[-1] == 3 for ids_T in found.ids)


def test_no_token_is_lost_and_none_is_too_many():
    words = [f"w{number}" for number in range(40)]
    found = pieces_of([" ".join(words)], max_length=9)
    assert max(map(len, found.ids)) <= 9
    assert sorted(token for ids_T in found.ids for token in ids_T[1:-1]) == sorted(
        tiny_tokenizer()(" ".join(words), add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize("count", [1, 5, 6, 7, 12, 13])
def test_a_long_sentence_is_cut_where_it_must_be(count):
    found = list(_packed([list(range(count)), [99]], 6))
    assert [token for piece in found for token in piece] == [*range(count), 99]
    assert max(map(len, found)) <= 6


def test_one_endless_sentence_is_cut_in_linear_time():
    began = time.process_time()
    assert sum(1 for _ in _packed([[7] * 1_000_000], 6)) == 166_667
    assert time.process_time() - began < 5


def test_a_piece_has_the_label_of_its_text():
    found = pieces_of(["w1 " * 20, "w2 " * 20], np.array([0, 1]))
    token = {1: tiny_tokenizer().convert_tokens_to_ids("w2"), 0: tiny_tokenizer().convert_tokens_to_ids("w1")}
    assert found.labels is not None
    assert all(ids_T[1] == token[label] for ids_T, label in zip(found.ids, found.labels, strict=True))


def test_batches_hold_every_piece_once_and_depend_on_seed_and_epoch_alone():
    found = pieces_of([f"w{n % 9} " * (1 + n % 5) for n in range(50)])
    one, same, other = found.batches(8, 1, 0), found.batches(8, 1, 0), found.batches(8, 1, 1)
    assert sorted(np.concatenate(one).tolist()) == list(range(len(found)))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_corpus_without_a_token_is_refused():
    with pytest.raises(DataInvalid, match="no text with a token"):
        pieces_of(["   "])
