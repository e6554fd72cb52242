"""The `messages` column: OpenAI's fine-tuning format, and an error with its place for everything else."""

import json

import pytest

from privtune.device.data.messages import ChatMessage, parse_conversation
from privtune.device.data.records import Columns
from privtune.device.data.source import DataSource
from privtune.shared.errors import DataInvalid

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def test_a_conversation_keeps_roles_texts_and_weights():
    cell = [{"role": "system", "content": "Be kind."}, USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}]
    messages = parse_conversation(cell, "d.jsonl")
    assert [message.role for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [message.learned for message in messages] == [False, False, False, False, True]
    assert messages[0] == ChatMessage("system", "Be kind.")


def test_what_follows_the_last_learned_answer_is_not_kept():
    messages = parse_conversation([USER, ANSWER, USER, ANSWER | {"weight": 0}, USER], "d.jsonl")
    assert [message.role for message in messages] == ["user", "assistant"]


def test_text_parts_are_joined_and_nulls_are_no_keys():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = parse_conversation([{"role": "user", "content": parts}, ANSWER | {"weight": None, "name": None}], "d")
    assert messages[0].content == "ab"
    assert messages[1].learned


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("text", "a list of messages"),
        ([], "a list of messages"),
        (None, "a list of messages"),
        (["Hi"], "message 1: an object with role and content is expected, not a str"),
        ([USER, {"role": "bot", "content": "x"}], "message 2: the role must be one of system, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "message 1: the role must be one of"),
        ([USER, {"role": "assistant", "content": ""}], "message 2: the content is empty"),
        ([USER, {"role": "assistant", "content": " \n"}], "message 2: the content is empty"),
        ([USER, {"role": "assistant"}], "message 2: the content must be a text"),
        ([USER, ANSWER | {"tool_calls": [{}]}], 'message 2: "tool_calls" can\'t be trained on'),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1: only parts of type text"),
        ([USER | {"weight": 1}, ANSWER], "message 1: only a message of the assistant may have a weight"),
        ([USER, ANSWER | {"weight": 0.5}], "message 2: the weight must be 0 or 1"),
        ([USER, ANSWER | {"weight": True}], "message 2: the weight must be 0 or 1"),
        ([USER, ANSWER | {"weight": 0}], "no assistant message to learn from"),
        ([USER], "no assistant message to learn from"),
    ],
)
def test_bad_conversations_name_the_place(cell, message):
    with pytest.raises(DataInvalid) as failed:
        parse_conversation(cell, 'd.jsonl, line 3, column "messages"')
    assert failed.value.message.startswith('d.jsonl, line 3, column "messages"')
    assert message in failed.value.message


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_messages_column_is_found_and_wins_over_text(tmp_path):
    path = write(tmp_path / "d.jsonl", {"text": "x", "messages": [USER, ANSWER]})
    records = DataSource(path=path).load("causal-lm")
    assert str(records.columns) == 'messages = "messages"'
    assert records[0].text == "Hello"
    assert [message.content for message in records[0].messages] == ["Hi", "Hello"]
    assert DataSource(path=path, columns=Columns(text="text")).load("causal-lm")[0].messages == ()


def test_a_named_column_and_columns_that_contradict_each_other(tmp_path):
    path = write(tmp_path / "d.jsonl", {"chat": [USER, ANSWER], "text": "x"}, {"chat": [USER], "text": "y"})
    with pytest.raises(DataInvalid, match=r'd\.jsonl, line 2, column "chat": no assistant message'):
        DataSource(path=path, columns=Columns(messages="chat")).load("causal-lm")
    with pytest.raises(DataInvalid, match="not both"):
        DataSource(path=path, columns=Columns(messages="chat", text="text")).load("causal-lm")
    with pytest.raises(DataInvalid, match="are for causal-lm"):
        DataSource(path=path, columns=Columns(messages="chat")).load("classification")
