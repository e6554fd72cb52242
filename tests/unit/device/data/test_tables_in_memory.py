"""Whatever holds a table in Python's memory is read as a file of the same cells would be."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from privtune.device.data.tables_in_memory import fingerprint, table_of
from privtune.shared.errors import DataInvalid, InvalidInput

ROWS = [{"text": "one", "label": 1}, {"text": None, "label": 0}]
KINDS = {
    "list of dicts": ROWS,
    "dict of columns": {"text": ["one", None], "label": [1, 0]},
    "arrays": {"text": np.array(["one", None], dtype=object), "label": np.array([1, 0])},
    "pandas": pd.DataFrame(ROWS),
    "pandas with an index": pd.DataFrame(ROWS, index=[9, 7]),
    "Arrow": pa.Table.from_pylist(ROWS),
    "datasets": datasets.Dataset.from_list(ROWS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_table(kind):
    table = table_of(KINDS[kind], "data")
    assert table.columns == ("text", "label")
    assert [(number, list(cells)) for number, cells in table.rows] == [(1, ["one", 1]), (2, [None, 0])]


def test_missing_cells_and_classes():
    frame = pd.DataFrame({"text": ["a", np.nan], "label": pd.Categorical(["x", None]), "when": [pd.NaT, pd.NaT]})
    assert [list(cells) for _, cells in table_of(frame, "data").rows] == [["a", "x", None], [None, None, None]]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    coded = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    assert [list(cells) for _, cells in table_of(coded, "data").rows] == [["a", "yes"], ["b", None]]
    assert [list(cells) for _, cells in table_of([{"a": 1}, {"b": 2}], "data").rows] == [[1, None], [None, 2]]


def test_the_fingerprint_is_that_of_the_cells():
    prints = {fingerprint(table_of(kind, "data")) for name, kind in KINDS.items() if name != "arrays"}
    assert len(prints) == 1
    assert fingerprint(table_of(ROWS[:1], "data")) not in prints


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (7, InvalidInput, "a list of dicts or a dict of columns is expected, not int"),
        ("text", InvalidInput, "not str"),
        ({"text": "abc"}, InvalidInput, "a column of this dict is a str"),
        (datasets.DatasetDict(train=KINDS["datasets"]), InvalidInput, r"choose a split, like data\['train'\]"),
        ([], DataInvalid, "data has no records"),
        (["a"], DataInvalid, "row 1: a dict is expected, not a str"),
        ([{1: "a"}], DataInvalid, "row 1: a int is no name of a column"),
        ({"a": [1], "b": []}, DataInvalid, "of different lengths"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), DataInvalid, "column 'a' occurs twice"),
    ],
)
def test_what_is_no_table_says_so(data, kind, words):
    with pytest.raises(kind, match=words):
        table_of(data, "data")
