"""ROUGE and BLEU against values worked out by hand, several references, and what is missing."""

import math
import sys

import pytest

from privtune.device.data.messages import ChatMessage
from privtune.device.data.records import Columns, Record, Records
from privtune.device.inference.evaluate import Question, questions_of
from privtune.device.inference.text_scores import score_texts
from privtune.shared.errors import InvalidInput


def test_values_that_can_be_worked_out_by_hand():
    scores = score_texts(["the blue cat sat on a mat"], [["the cat sat on the mat"]])
    # unigrams: 5 of 7 and 5 of 6; bigrams: "cat sat", "sat on" of 6 and of 5
    assert scores.rouge1 == pytest.approx(2 * (5 / 7) * (5 / 6) / (5 / 7 + 5 / 6))
    assert scores.rouge2 == pytest.approx(2 * (2 / 6) * (2 / 5) / (2 / 6 + 2 / 5))
    # precisions 5/7, 2/6, 1/5 ("cat sat on") and 0 of 4, which smoothing makes 1/(2 * 4); no brevity penalty
    expected = 100 * math.exp(sum(math.log(p) for p in (5 / 7, 2 / 6, 1 / 5, 1 / 8)) / 4)
    assert scores.bleu == pytest.approx(expected)
    assert "tok:13a" in scores.signature


def test_the_nearest_of_several_references_counts_and_their_number_may_differ():
    scores = score_texts(["a b c d e", "f g h i"], [["nothing", "a b c d e"], ["f g h i"]])
    assert (scores.rouge1, scores.rouge2, scores.rougeL) == (1, 1, 1)
    assert scores.bleu == pytest.approx(100)


def test_an_empty_answer_counts_as_nothing():
    assert score_texts(["", "a b"], [["a b"], ["a b"]]).rouge1 == pytest.approx(0.5)
    with pytest.raises(InvalidInput, match="no generated text"):
        score_texts([], [])


@pytest.mark.parametrize("package", ["rouge_score", "sacrebleu"])
def test_a_missing_package_says_how_to_get_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidInput, match=r"pip install '\.\[eval\]'"):
        score_texts(["a"], [["a"]])


def records(*items, **columns):
    return Records(source="d.jsonl", unit="line", columns=Columns(**columns), items=items)


def test_equal_prompts_are_one_question_with_all_their_answers():
    found = questions_of(
        records(
            Record(number=1, prompt="p", text="one"),
            Record(number=2, prompt="q", text="two"),
            Record(number=3, prompt="p", text="three"),
            prompt="prompt",
        )
    )
    assert found == [Question(prompt="p", references=("one", "three")), Question(prompt="q", references=("two",))]


def test_a_conversation_asks_for_its_last_answer():
    user, answer = ChatMessage("user", "Hi"), ChatMessage("assistant", "Hello", True)
    found = questions_of(
        records(
            Record(number=1, text="Hello", messages=(user, answer)),
            Record(number=2, text="Hello", messages=(answer,)),  # nobody asked
            messages="messages",
        )
    )
    assert found == [Question(prompt=(user,), references=("Hello",))]
    with pytest.raises(InvalidInput, match="--generate needs prompts"):
        questions_of(records(Record(number=1, text="x"), text="text"))
