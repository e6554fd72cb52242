"""From tokens to text, and from logits to tokens."""

import pytest
import torch

from privtune.device.inference.generation.sampling import Sampler, Sampling
from privtune.device.inference.generation.text_pieces import TextPieces
from privtune.shared.errors import InvalidInput
from tests.support.chats import byte_tokenizer
from tests.support.tiny_models import tiny_tokenizer


def pieces_of(text, stop=(), prompt="Hi"):
    tokenizer = byte_tokenizer()
    pieces = TextPieces(tokenizer, tokenizer(prompt)["input_ids"], stop)
    shown = []
    for token in tokenizer(text)["input_ids"]:
        shown.append(pieces.push(token))
        if pieces.stopped:
            break
    return [*shown, pieces.finish()], pieces.stopped


def test_characters_of_several_bytes_come_whole():
    shown, _ = pieces_of("né 🙂 ok")
    assert "".join(shown) == "né 🙂 ok"
    assert not any("�" in piece for piece in shown)


def test_broken_bytes_at_the_end_are_shown_at_last():
    tokenizer = byte_tokenizer()
    pieces = TextPieces(tokenizer, [], ())
    ids = tokenizer("a🙂")["input_ids"]
    assert [pieces.push(token) for token in ids[:-1]] == ["a", "", "", ""]
    assert pieces.finish() == "�"


@pytest.mark.parametrize(
    ("text", "stop", "expected", "stopped"),
    [
        ("one\n\ntwo", ("\n\n",), "one", True),
        ("one\ntwo", ("\n\n",), "one\ntwo", False),
        ("ends\n", ("\n\n",), "ends\n", False),
        ("abcabd", ("abd", "zz"), "abc", True),
        ("xSTOP", ("STOP", "xS"), "", True),
    ],
)
def test_stop_texts_end_it_and_never_show(text, stop, expected, stopped):
    shown, ended = pieces_of(text, stop)
    assert ("".join(shown), ended) == (expected, stopped)


def test_the_space_between_prompt_and_answer_is_kept():
    tokenizer = tiny_tokenizer()
    pieces = TextPieces(tokenizer, tokenizer.convert_tokens_to_ids(["w1", "w2"]), ())
    assert pieces.push(tokenizer.convert_tokens_to_ids("w5")) == " w5"


def test_greedy_takes_the_likeliest_and_a_seed_repeats_the_rest():
    logits_V = torch.tensor([0.0, 2.0, 1.9, -5.0])
    assert Sampler(Sampling()).choose(logits_V) == 1
    drawn = [[Sampler(Sampling(temperature=1.0, seed=seed)).choose(logits_V) for _ in range(3)] for seed in range(30)]
    assert all(len(set(same)) == 1 for same in drawn)
    assert {1, 2} <= {same[0] for same in drawn}


def test_drawn_tokens_follow_the_temperature_and_the_bounds():
    logits_V = torch.tensor([1.0, 0.0, -1.0, -2.0])

    def shares(**options):
        sampler = Sampler(Sampling(seed=0, **options))
        drawn = torch.tensor([sampler.choose(logits_V) for _ in range(4000)])
        return torch.bincount(drawn, minlength=4) / 4000

    torch.testing.assert_close(shares(temperature=2.0), (logits_V / 2).softmax(-1), atol=0.03, rtol=0)
    assert (shares(temperature=1.0, top_k=2)[2:] == 0).all()
    assert (shares(temperature=1.0, top_p=0.6)[1:] == 0).all()


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
        {"stop": ("",)},
        {"stop": ("x",) * 17},
    ],
)
def test_values_out_of_range_are_refused(values):
    with pytest.raises(InvalidInput, match=next(iter(values))):
        Sampling(**values)
