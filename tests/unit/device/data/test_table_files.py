"""Every reader on good files and on each kind of bad one: the message names the file, the line and the column."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privtune.device.data.records import Columns
from privtune.device.data.source import DataSource
from privtune.device.data.table_files import read_table
from privtune.shared.errors import DataInvalid


def write(tmp_path: Path, name: str, content: str | bytes) -> str:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(file)


def texts_and_labels(path: str) -> list[tuple[str, str | None]]:
    return [(record.text, record.label) for record in DataSource(path=path).load("classification")]


EXPECTED = [('He said "no", then\nleft.', "1"), ("Grüße aus Köln 🎉", "0")]


def test_csv_with_quotes_commas_and_line_breaks(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"He said ""no"", then\nleft.",1\nGrüße aus Köln 🎉,0\n')
    assert texts_and_labels(path) == EXPECTED
    assert [line for line, _ in read_table(path).rows] == [2, 4]


def test_csv_of_windows_with_a_byte_order_mark_and_blank_lines(tmp_path):
    path = write(tmp_path, "a.CSV", b"\xef\xbb\xbftext,label\r\nfine,1\r\n\r\nbad,0\r\n")
    assert texts_and_labels(path) == [("fine", "1"), ("bad", "0")]


def test_tsv_takes_quotes_as_they_are(tmp_path):
    path = write(tmp_path, "a.tsv", 'sentence\tlabel\n"half a quote\t1\r\nplain\u2028text\t0\n')
    assert texts_and_labels(path) == [('"half a quote', "1"), ("plain\u2028text", "0")]


def test_jsonl_labels_of_every_kind(tmp_path):
    rows = [{"text": "a", "label": True}, {"text": "b", "label": 3}, {"text": "c", "label": 2.0}]
    path = write(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert texts_and_labels(path) == [("a", "true"), ("b", "3"), ("c", "2")]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"review": ["good", "bad"], "label": [1, 0]}), path)
    assert texts_and_labels(str(path)) == [("good", "1"), ("bad", "0")]


def test_parquet_columns_that_python_can_not_hold_matter_only_where_they_are_used(tmp_path):
    path = tmp_path / "a.parquet"
    far = pa.array([(12_000 - 1970) * 31_556_952 * 10**6, None], pa.timestamp("us"))
    fine = pa.array([1, 2], pa.timestamp("ns"))
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"b"], pa.binary()).buffers())
    columns = {"text": ["good", "bad"], "label": [1, 0], "far": far, "fine": fine, "broken": broken}
    pq.write_table(pa.table(columns), path)
    assert texts_and_labels(str(path)) == [("good", "1"), ("bad", "0")]
    for name, row in (("far", 1), ("broken", 1)):
        with pytest.raises(DataInvalid, match=rf'row {row}, column "{name}": a text is expected, not a (time|string)'):
            DataSource(path=str(path), columns=Columns(text=name)).load("classification")


@pytest.mark.parametrize(("name", "tab"), [("a.csv", ","), ("a.tsv", "\t")])
def test_the_unnamed_index_of_pandas(tmp_path, name, tab):
    path = write(tmp_path, name, ",text,label\n0,good,1\n1,bad,0\n".replace(",", tab))
    assert texts_and_labels(path) == [("good", "1"), ("bad", "0")]
    assert DataSource(path=path).load("classification").unused == ("Unnamed: 0",)


def test_a_json_array(tmp_path):
    rows = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
    for indent in (None, 2):
        assert texts_and_labels(write(tmp_path, "a.json", json.dumps(rows, indent=indent))) == [
            ("good", "1"),
            ("bad", "0"),
        ]
    lines = "\n".join(json.dumps(row) for row in rows)
    assert texts_and_labels(write(tmp_path, "a.json", lines)) == [("good", "1"), ("bad", "0")]


def test_a_very_long_field(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\n" + "word " * 60_000 + ",1\nshort,0\n")
    assert len(texts_and_labels(path)[0][0]) == 300_000


BAD = [
    ("a.csv", "", r"a\.csv is empty"),
    ("a.csv", "\n\n", r"a\.csv is empty"),
    ("a.tsv", b"\xef\xbb\xbf", r"a\.tsv has no records|a\.tsv is empty|no name"),
    ("a.csv", "text,label\n", r"a\.csv has no records"),
    ("a.tsv", "text\tlabel\n", r"a\.tsv has no records"),
    ("a.csv", b"text,label\ngood,1\ncaf\xe9,0\n", r"a\.csv, line 3: not UTF-8 \(byte offset 21\)"),
    ("a.csv", b"\xef\xbb\xbftext,label\ncaf\xe9,0\n", r"a\.csv, line 2: not UTF-8 \(byte offset 17\)"),
    ("a.csv", "text,label\nx,1\n".encode("utf-16"), r"a\.csv, line 1: this is UTF-16"),
    ("a.tsv", b"text\tlabel\ngo\x00od\t1\n", r"a\.tsv, line 2: a NUL byte \(byte offset 13\)"),
    ("a.csv", "text,label\ngood,1\nbad, really,0\n", r"a\.csv, line 3: 3 fields, but the header has 2"),
    ("a.tsv", "text\tlabel\ngood\t1\nbad\n", r"a\.tsv, line 3: 1 field, but the header has 2"),
    ("a.csv", 'text,label\ngood,1\n"never closed,0\nx,1\n', r"a\.csv, line 3: not valid CSV"),
    ("a.csv", "text,text\na,b\n", r'a\.csv, line 1: column "text" occurs twice'),
    ("a.csv", "text,,label\na,b,c\n", r"a\.csv, line 1: field 2 of the header has no name"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", \n', r"a\.jsonl, line 2: not valid JSON at character"),
    ("a.jsonl", '["a", 1]\n', r"a\.jsonl, line 1: a JSON object .* not a list"),
    ("a.jsonl", '[{"text": "a", "label": 1}]\n', r"line 1: .* not a list.* a \.json file may also hold one array"),
    ("a.json", '[{"text": "a", "label": 1},\n {"text": }]', r"a\.json: not valid JSON at line 2, character 11"),
    ("a.json", '[{"text": "a", "label": 1}, 7]', r"a\.json, row 2: a JSON object .* not a int"),
    (
        "a.json",
        '[{"text": "a", "label": 1}, {"text": "", "label": 1}]',
        r'a\.json, row 2, column "text": the text is empty',
    ),
    ("a.json", '{"data": [\n{"text": "a", "label": 1}]}', r"line 1: not valid JSON .* one array of them"),
    ("a.json", "[" * 100_000, r"a\.json: (JSON nested too deeply|not valid JSON)"),
    ("a.jsonl", "[" * 100_000 + "\n", r"a\.jsonl, line 1: (JSON nested too deeply|not valid JSON)"),
    ("a.parquet", b"", r"a\.parquet is empty"),
    ("a.parquet", b"not parquet at all", r"a\.parquet can't be read as Parquet"),
    ("a.xlsx", b"PK", r"a\.xlsx: unknown data format \.xlsx; use one of \.jsonl"),
    ("a.csv", "text,label\ngood,1\n  ,0\n", r'a\.csv, line 3, column "text": the text is empty'),
    ("a.csv", "text,label\ngood,1\nbad,\n", r'a\.csv, line 3, column "label": the label is missing'),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', r'a\.jsonl, line 2, column "label": the label is mis'),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 0}\n', r'a\.jsonl, line 2, column "text": the record has no'),
    ("a.jsonl", '{"text": ["a"], "label": 1}\n', r'a\.jsonl, line 1, column "text": a text is expected, not a list'),
    ("a.jsonl", '{"text": "a", "label": 0.5}\n', r'line 1, column "label": a label must be a text or a whole'),
    (
        "a.jsonl",
        '{"text": "b", "label": 0}\n{"text": "a\\ud83d", "label": 1}\n',
        r'line 2, column "text": half of a char',
    ),
    ("a.jsonl", '{"text": "b", "label": 0}\n{"text": "a", "label": "\\udc00"}\n', r'line 2, column "label": half of a'),
    ("a.jsonl", '{"text": "b", "text2": "\\ud83d", "label": 0}\n', r'line 1, column "text2": half of a character'),
    ("a.jsonl", '{"text": "b", "label": 0, "\\ud83d": 0}\n', r"line 1: the name of a column has half of a character"),
    ("a.csv", "words,label\na,1\n", r'which column is the text\? .* Its columns: "words", "label"'),
    ("a.tsv", "a fine film\nanother\n", r'Its columns: "a fine film" \(in its first line, the header'),
    ("a.csv", "text,kind\na,1\n", r'which column is the label\? .* Its columns: "text", "kind"'),
    ("a.csv", "prompt,completion\na,b\n", r"which column is the label\? .* language model: --task causal-lm\."),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=range(len(BAD)))
def test_bad_file(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(DataInvalid, match=message) as caught:
        DataSource(path=path).load("classification")
    assert "\n" not in caught.value.message


ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "\ud800"}]}


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a\ud83d"},
        {"prompt": "a\udfff", "completion": "b"},
        {"prompt": "a", "completion": "\ud83d\ud83d"},
        {"messages": [{"role": "user", "content": "a\ud83d"}, {"role": "assistant", "content": "b"}]},
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [{"type": "text", "text": "\ud800"}]},
            ]
        },
    ],
)
def test_half_of_a_character_in_a_language_models_data(tmp_path, row):
    path = write(tmp_path, "a.jsonl", json.dumps(row))
    with pytest.raises(DataInvalid, match=r'a\.jsonl, line 1, column "\w+".*: half of a character \(U\+D'):
        DataSource(path=path).load("causal-lm")


def test_a_character_of_two_halves_is_whole(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "\\ud83d\\ude00", "label": 1}')
    assert texts_and_labels(path) == [("😀", "1")]


def test_parquet_names_the_row(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["good", None], "label": [1, 0]}), path)
    with pytest.raises(DataInvalid, match=r'a\.parquet, row 2, column "text"'):
        texts_and_labels(str(path))


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(DataInvalid, match="is a folder; name one data file in it"):
        read_table(str(tmp_path))
    with pytest.raises(DataInvalid, match="no such file"):
        read_table(str(tmp_path / "nothing.csv"))
    with pytest.raises(DataInvalid, match="no such file"):
        read_table("owner/nothing.csv")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that even root can't read from its start")
def test_a_file_that_can_not_be_read(tmp_path):
    (tmp_path / "a.csv").symlink_to("/proc/self/mem")
    with pytest.raises(DataInvalid, match=r"a\.csv can't be read: "):
        read_table(str(tmp_path / "a.csv"))


def in_subprocess(code: str, **env: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=120).stdout


HUB_CODE = """
from privtune.device.data.table_files import read_table
from privtune.shared.errors import PrivTuneError
try:
    read_table("someone/some-reviews:plain@validation")
except PrivTuneError as error:
    print(error)
"""


def test_hub_offline_is_one_clear_line(tmp_path):
    pytest.importorskip("datasets", reason="the hub extra is not installed")
    out = in_subprocess(HUB_CODE, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert out.startswith("someone/some-reviews:plain@validation: no such file, and the hub does not provide it: ")
    assert out.count("\n") == 1


def test_hub_without_its_extra():
    out = in_subprocess("import sys; sys.modules['datasets'] = None\n" + HUB_CODE)
    assert "pip install '.[hub]' in the checkout" in out
