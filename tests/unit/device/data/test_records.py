"""Columns found by the header, sampling, the held-out part, and the checks on labels."""

import json
from collections import Counter
from pathlib import Path

import pytest

from privtune.device.data.records import Columns
from privtune.device.data.source import DataSource, class_numbers, label_order, split, training_labels
from privtune.device.training.submit import check_data
from privtune.shared.errors import DataInvalid, InvalidInput
from privtune.shared.job_spec import JobSpec


def csv(tmp_path: Path, header: str, *rows: str, name: str = "d.csv") -> str:
    file = tmp_path / name
    file.write_text("\n".join((header, *rows)) + "\n")
    return str(file)


@pytest.mark.parametrize(
    ("task", "header", "taken"),
    [
        ("classification", "id,Text,Label", 'text = "Text", label = "Label"'),
        ("classification", "review,sentiment", 'text = "review", label = "sentiment"'),
        ("classification", "sentence1,sentence2,label", 'text = "sentence1", text2 = "sentence2", label = "label"'),
        ("classification", "question,sentence,label", 'text = "question", text2 = "sentence", label = "label"'),
        ("causal-lm", "prompt,completion", 'prompt = "prompt", completion = "completion"'),
        ("causal-lm", "question,answer", 'prompt = "question", completion = "answer"'),
        ("causal-lm", "text,label", 'text = "text"'),
    ],
)
def test_columns_are_found_by_the_header_and_reported(tmp_path, task, header, taken):
    cells = ",".join("abcdef"[: header.count(",") + 1])
    records = DataSource(path=csv(tmp_path, header, cells)).load(task)
    assert str(records.columns) == taken


def test_named_columns_win(tmp_path):
    path = csv(tmp_path, "text,body,label,kind", "t,b,0,k1", "u,c,1,k2")
    columns = Columns(text="body", label="kind")
    records = DataSource(path=path, columns=columns).load("classification")
    assert [(record.text, record.label) for record in records] == [("b", "k1"), ("c", "k2")]


def test_a_wrong_column_lists_the_columns(tmp_path):
    path = csv(tmp_path, "text,label", "a,1")
    with pytest.raises(DataInvalid, match=r'd\.csv: no column "txt" for text\. Its columns: "text", "label" \(in its'):
        DataSource(path=path, columns=Columns(text="txt")).load("classification")


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("classification", Columns(prompt="text"), "are for causal-lm"),
        ("causal-lm", Columns(label="label"), "no label"),
        ("causal-lm", Columns(text="text", prompt="label"), "not both"),
        ("causal-lm", Columns(prompt="text"), "name both --prompt-column and --completion-column"),
    ],
)
def test_columns_that_do_not_fit_the_task(tmp_path, task, columns, message):
    path = csv(tmp_path, "text,label", "a,1")
    with pytest.raises(DataInvalid, match=message):
        DataSource(path=path, columns=columns).load(task)


def test_prediction_needs_no_label_column(tmp_path):
    records = DataSource(path=csv(tmp_path, "text,id", "a,1")).load("classification", labelled=False)
    assert [(record.text, record.label) for record in records] == [("a", None)]


def reviews(tmp_path: Path, count: int = 200) -> str:
    # sorted by label, three quarters of class 0: what sampling and splitting must cope with
    return csv(tmp_path, "text,label", *(f"text {i},{int(i >= count * 3 // 4)}" for i in range(count)))


def test_sampling_is_random_repeatable_and_bounded(tmp_path):
    path = reviews(tmp_path)
    first = DataSource(path=path, limit=60, seed=1).load("classification")
    again = DataSource(path=path, limit=60, seed=1).load("classification")
    other = DataSource(path=path, limit=60, seed=2).load("classification")
    assert list(first) == list(again) != list(other)
    assert len(first) == len(set(first)) == 60
    assert set(Counter(record.label for record in first)) == {"0", "1"}
    assert len(DataSource(path=path, limit=999).load("classification")) == 200


def test_the_held_out_part_is_stratified_disjoint_and_repeatable(tmp_path):
    train, held_out = DataSource(path=reviews(tmp_path), seed=3).with_holdout(0.1)
    train_records, held_records = train.load("classification"), held_out.load("classification")
    assert Counter(record.label for record in held_records) == {"0": 15, "1": 5}
    assert len(train_records) == 180
    assert not set(train_records) & set(held_records)
    assert list(held_records) == list(held_out.load("classification"))


def test_a_rare_label_stays_in_training(tmp_path):
    path = csv(tmp_path, "text,label", *(f"t{i},{i % 2}" for i in range(20)), "rare,9")
    train, held_out = split(DataSource(path=path).load("classification"), 0.5, seed=0)
    assert "9" in training_labels(train)
    class_numbers(held_out, training_labels(train))


def test_too_few_records_to_hold_out(tmp_path):
    train, _ = DataSource(path=csv(tmp_path, "text,label", "a,0", "b,1")).with_holdout(0.1)
    with pytest.raises(DataInvalid, match="too few to hold out 10%"):
        train.load("classification")


@pytest.mark.parametrize("bad", [{"limit": 0}, {"holdout": 1.0}, {"holdout": -0.1}, {"part": "train"}])
def test_settings_out_of_range(bad):
    with pytest.raises(InvalidInput):
        DataSource(path="a.csv", **bad)


def test_labels_are_ordered_by_number_or_name():
    assert label_order(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert label_order(["b", "10", "a"]) == ("10", "a", "b")


def test_one_label_only(tmp_path):
    records = DataSource(path=csv(tmp_path, "text,label", "a,1", "b,1")).load("classification")
    with pytest.raises(DataInvalid, match=r'd\.csv, column "label": all records have the same label \(2\)'):
        training_labels(records)


def test_a_label_that_training_has_not_seen(tmp_path):
    path = csv(tmp_path, "text,label", "a,1", "b,secret-diagnosis")
    records = DataSource(path=path).load("classification")
    with pytest.raises(DataInvalid, match=r'd\.csv, line 3, column "label": this label does not occur') as caught:
        class_numbers(records, ("0", "1"))
    assert "secret-diagnosis" not in caught.value.message  # a public message carries no label
    assert "secret-diagnosis" in caught.value.detail


def test_records_without_labels_can_not_be_trained_on(tmp_path):
    records = DataSource(path=csv(tmp_path, "text", "a")).load("classification", labelled=False)
    with pytest.raises(DataInvalid, match="no labels"):
        training_labels(records)


ALPACA = {"instruction": "Sum up.", "input": "A long text.", "output": "Short."}
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def rows(tmp_path: Path, *records: dict) -> str:
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


@pytest.mark.parametrize(
    ("record", "column", "remedy"),
    [
        (ALPACA, "input", "Join it into the prompt, .* --prompt-column and --completion-column"),
        ({"question": "q", "context": "c", "answer": "a"}, "context", "Join it into the prompt"),
        ({"system": "s", "prompt": "q", "completion": "a"}, "system", "Join it into the prompt"),
        ({"System": "s", "prompt": "q", "completion": "a"}, "System", "Join it into the prompt"),
        ({"prompt": "q", "completion": "a", "tools": [{"type": "function"}]}, "tools", "remove the column"),
        ({"messages": TALK, "tools": [{"type": "function"}]}, "tools", "remove the column"),
        ({"messages": TALK, "system": "be brief"}, "system", "Join it into messages, .* --messages-column"),
    ],
)
def test_what_belongs_to_the_prompt_is_not_left_out_without_a_word(tmp_path, record, column, remedy):
    empty = {name: ("" if name == column and name.lower() != "tools" else value) for name, value in record.items()}
    if column == "tools":
        empty["tools"] = []
    assert len(DataSource(path=rows(tmp_path, empty)).load("causal-lm")) == 1
    with pytest.raises(DataInvalid, match=rf'd\.jsonl, line 2, column "{column}": .*would be left out.*{remedy}'):
        DataSource(path=rows(tmp_path, empty, record)).load("causal-lm")


def test_an_owner_who_names_the_columns_may_leave_the_others_out(tmp_path):
    columns = Columns(prompt="instruction", completion="output")
    records = DataSource(path=rows(tmp_path, ALPACA), columns=columns).load("causal-lm")
    assert str(records).endswith('prompt = "instruction", completion = "output"; not used: input')
    columns = Columns(text="output")
    assert "not used: instruction, input" in str(
        DataSource(path=rows(tmp_path, ALPACA), columns=columns).load("causal-lm")
    )
    tools = {"messages": TALK, "tools": [{"type": "function"}]}
    with pytest.raises(DataInvalid, match="tools"):
        DataSource(path=rows(tmp_path, tools), columns=Columns(messages="messages")).load("causal-lm")


def test_a_thousand_labels_are_remarked_on(tmp_path):
    few = csv(tmp_path, "text,label", *(f"text {i},{i % 100}" for i in range(1000)))
    many = csv(tmp_path, "text,label", *(f"text {i},{i}" for i in range(1000)), name="many.csv")
    spec = JobSpec(model="m", training_file="device://a", task="classification")
    for path, remarks in ((few, 0), (many, 1)):
        said: list[str] = []
        check_data(DataSource(path=path), None, spec, said.append)
        assert sum("different values" in line and "--label-column" in line for line in said) == remarks
