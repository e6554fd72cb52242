"""Prompts leave with surrogates, one map for a conversation, and the true words come back as an answer is written."""

from __future__ import annotations

import pytest

from privtune.device.data.messages import ChatMessage
from privtune.device.inference.generation.prompt_builder import leaving
from privtune.device.inference.generation.text_pieces import TextPieces
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import SurrogateSpec
from tests.support.chats import byte_tokenizer

FIRST = ChatMessage("user", "My name is Ottilie Brandvold and I call from Trondheim.")


@pytest.fixture(scope="module")
def surrogates():
    return Surrogates(SurrogateSpec(replace="identifying"), bytes(32))


def test_a_prompt_without_surrogates_leaves_as_it_is():
    assert leaving("I am Ottilie.", None) == ("I am Ottilie.", None)
    assert leaving([5, 6], None) == ([5, 6], None)


@pytest.mark.parametrize("opening", [(), (ChatMessage("system", "Be brief with Brandvold."),)])
def test_the_turns_of_a_conversation_have_one_map(surrogates, opening):
    start = [*opening, FIRST]
    before, _ = leaving(start, surrogates)
    turns = [*start, ChatMessage("assistant", "Hello Ottilie."), ChatMessage("user", "Tell Zbigniew about Ottilie.")]
    after, known = leaving(turns, surrogates)
    assert list(after[: len(before)]) == before, "what has left is what leaves again"
    sent = " ".join(message.content for message in after)
    assert not any(name in sent for name in ("Ottilie", "Brandvold", "Trondheim", "Zbigniew"))
    assert [known.restore(message.content) for message in after] == [message.content for message in turns]
    assert [message.role for message in after] == [message.role for message in turns]
    other, _ = leaving([*opening, ChatMessage("user", FIRST.content + " Hello?")], surrogates)
    assert other[-1].content.removesuffix(" Hello?") != before[-1].content, "another conversation has another map"


def test_token_ids_are_refused(surrogates):
    with pytest.raises(InvalidInput, match="can't find it in token ids; send the text instead"):
        leaving([5, 6], surrogates)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [((), "Dear Ottilie Brandvold, of Trondheim."), (("Trond",), "Dear Ottilie Brandvold, of ")],
)
def test_an_answer_is_restored_as_it_comes_and_stops_at_true_words(surrogates, stop, expected):
    tokenizer = byte_tokenizer()
    prompt, known = leaving([FIRST], surrogates)
    learned, _ = leaving([FIRST, ChatMessage("assistant", "Dear Ottilie Brandvold, of Trondheim.")], surrogates)
    written = learned[-1].content
    pieces = TextPieces(tokenizer, tokenizer(prompt[0].content)["input_ids"], stop, known)
    shown = ""
    for token in tokenizer(written)["input_ids"]:
        shown += pieces.push(token)
        assert expected.startswith(shown)
        if pieces.stopped:
            break
    assert shown + pieces.finish() == expected
    assert pieces.stopped == bool(stop)
