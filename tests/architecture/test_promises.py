"""Each promise names tests that exist, so that none is renamed or deleted unnoticed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`((?:tests/[\w/]+\.py)?(?:::\w+)?)`")


def promises():
    lines = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [(row[0], row[1]) for row in rows[1:]]


def missing(cell):
    """Tests that a cell names and that are not there; `::name` is of the file named before."""
    found, file, text = [], "", ""
    for name in filter(None, NAMED.findall(cell)):
        path, _, test = name.partition("::")
        if path:
            file, text = path, (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).exists() else ""
        if not text or (test and f"\ndef {test}(" not in text):
            found.append(f"{file}::{test}")
    return found


@pytest.mark.parametrize(("promise", "tests"), promises())
def test_a_promise_names_tests_that_exist(promise, tests):
    assert NAMED.search(tests), "no test is named"
    assert missing(tests) == []


def test_a_test_that_is_gone_would_be_noticed():
    assert missing("`tests/security/test_wire.py::test_no_text`, `::test_gone`, `tests/security/test_gone.py`") == [
        "tests/security/test_wire.py::test_gone",
        "tests/security/test_gone.py::",
    ]


def test_tests_that_the_threat_model_names_exist():
    text = (ROOT / "THREAT_MODEL.md").read_text(encoding="utf-8")
    assert "docs/promises.md" in text
    names = set(re.findall(r"`(?:tests/[\w/]+/)?(test_\w+\.py)`", text))
    assert len(names) > 5
    assert [name for name in names if not list((ROOT / "tests").rglob(name))] == []
