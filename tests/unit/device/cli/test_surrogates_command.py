"""`privtune surrogates show`: what stays, what is replaced by what, and how much of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from privtune.device.cli import main
from privtune.device.surrogates import own_words

ROWS = [
    {"text": "My name is Ottilie Brandvold, call +49 171 5551234.", "label": 1},
    {"text": "The soup was cold \x1band green window was dark.", "label": 0},
]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["surrogates", "show", "--data", *arguments])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out


def test_a_log_reads_as_a_diff(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = show(capsys, file)
    assert "My name is [-Ottilie-]{+" in out
    assert "The soup was cold  and green window was dark." in out, "what steers a terminal is not printed"
    assert "family name" in out
    assert "Surrogates replace " in out
    assert "content words, as they are" in out
    assert "Recognisers that ran: presidio" in out
    assert "Shown" not in out
    assert "[-green" not in out
    assert "in clear in another" not in out
    assert "Shown: the first 1 record; counts are of all 2" in show(capsys, file, "--limit", "1")


def test_names_that_stay_elsewhere_are_listed(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_words, "names_in_clear", lambda records: [records[0].names, frozenset({"Brandvold"})])
    assert "in clear in another: 5 words (Brandvold (2), " in show(capsys, file)


def test_a_terminal_has_colours(file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = show(capsys, file)
    assert "[-" not in out
    assert "\x1b[9;31mOttilie\x1b[0m\x1b[32m" in out


def test_programs_read_json_and_own_terms_are_replaced(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = tmp_path / "terms.txt"
    terms.write_text("green window\n\n")
    found = json.loads(show(capsys, file, "--own-terms", str(terms), "--json"))
    assert (found["records"], found["names_in_clear"]) == (2, {})
    assert found["coverage"]["words"] > found["coverage"]["replaced"] >= 4
    pieces = [piece for one in found["shown"] for text in one["texts"] for piece in text]
    assert {"Ottilie", "Brandvold", "green window"} <= {one["text"] for one in pieces if one["kind"]}
    whole = ["".join(piece["text"] for piece in one["texts"][0]) for one in found["shown"]]
    assert whole == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--surrogate-rank", "5"], "--surrogate-rank '5'|--surrogate-rank 5"),
        (["--own-terms", "nowhere.txt"], "nowhere.txt can't be read"),
        (["--surrogate-language", "EN"], "--surrogate-language 'EN': write it like en or de."),
        (["--surrogate-language", "xx"], "no word frequencies for the language 'xx'"),
    ],
)
def test_a_mistake_is_one_line(file: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["surrogates", "show", "--data", file, *arguments])
    error = capsys.readouterr().err
    assert any(part in error for part in words.split("|"))
    assert error.count("\n") == 1
