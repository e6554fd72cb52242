"""Text files to tables, JSON, JSONL, CSV and TSV, with the place of every cell; cells as texts and labels.

Each reader checks what can be checked without knowing what the columns mean; its errors name file and line. The device
reads its records with it, and the cloud its public text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from privtune.shared.errors import DataInvalid
from privtune.shared.plain_text import read_text, whole
from privtune.shared.validation import half_character
from privtune.shared.wording import counted

# Column names to look for, in this order, when none is given.
TEXT_NAMES = ("text", "sentence", "review", "content", "comment", "message", "document", "body", "description")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "condition", "rating")


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """Rows of one data set as its file has them.

    source: the file or hub id.
    unit: what numbers a row: the line of a text file, or the row, both from 1.
    columns: names, in order.
    rows: the number and the cells of each row.
    """

    source: str
    unit: Literal["line", "row"]
    columns: tuple[str, ...]
    rows: Sequence[tuple[int, Sequence[object]]]


def place(source: str, unit: str, number: int, column: str | None) -> str:
    """`reviews.csv, line 7, column "text"`: how every message of this room names a place."""
    return f"{source}, {unit} {number}" + (f', column "{column}"' if column is not None else "")


UNNAMED = "Unnamed: 0"  # pandas' name for the index that `DataFrame.to_csv` writes first, without one


def _header(file: Path, cells: Sequence[str]) -> tuple[str, ...]:
    names = tuple(cell.strip() for cell in cells)
    if names[0] == "" and len(names) > 1:
        names = (UNNAMED, *names[1:])
    for number, name in enumerate(names, start=1):
        if not name:
            hint = "Name it, or remove the column."
            raise DataInvalid(f"{file}, line 1: field {number} of the header has no name. {hint}")
        if names.index(name) != number - 1:
            raise DataInvalid(f'{file}, line 1: column "{name}" occurs twice.')
    return names


def _ragged(file: Path, line: int, found: int, wanted: int, hint: str) -> DataInvalid:
    return DataInvalid(f"{file}, line {line}: {counted(found, 'field')}, but the header has {wanted}. {hint}")


def _read_csv(file: Path) -> RawTable:
    text = read_text(file)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: tuple[str, ...] | None = None
    rows: list[tuple[int, Sequence[object]]] = []
    line = 1
    try:
        for cells in reader:
            if not cells:
                pass  # a blank line
            elif columns is None:
                columns = _header(file, cells)
            elif len(cells) != len(columns):
                hint = "Put a text that contains a comma, a quote or a line break in double quotes."
                raise _ragged(file, line, len(cells), len(columns), hint)
            else:
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        hint = "A double quote that opens here may not be closed; inside a quoted text, write it twice."
        raise DataInvalid(f"{file}, line {line}: not valid CSV ({error}). {hint}") from None
    return RawTable(source=str(file), unit="line", columns=columns or (), rows=rows)


def _read_tsv(file: Path) -> RawTable:
    """Plain TSV: a header, tabs between fields, no quoting (a quote is an ordinary character)."""
    lines = read_text(file).split("\n")
    columns = _header(file, lines[0].rstrip("\r").split("\t"))
    rows: list[tuple[int, Sequence[object]]] = []
    for line, content in enumerate(lines[1:], start=2):
        cells = content.rstrip("\r").split("\t")
        if len(cells) == 1 and not cells[0].strip():
            continue
        if len(cells) != len(columns):
            hint = "A text in a TSV file can't contain tabs or line breaks; in a CSV file it can."
            raise _ragged(file, line, len(cells), len(columns), hint)
        rows.append((line, cells))
    return RawTable(source=str(file), unit="line", columns=columns, rows=rows)


_MISSING = object()


def is_missing(cell: object) -> bool:
    """Whether a cell is absent from its record, or null."""
    return cell is _MISSING or cell is None


def _read_jsonl(file: Path) -> RawTable:
    records: list[tuple[int, dict[str, object]]] = []
    for line, content in enumerate(read_text(file).split("\n"), start=1):
        if not content.strip():
            continue
        hint = "Each line must be one JSON object; a .json file may also hold one array of them."
        record = _parsed(content, f"{file}, line {line}", hint)
        if not isinstance(record, dict):
            kind = type(record).__name__
            expected = 'a JSON object like {"text": ...} is expected'
            raise DataInvalid(f"{file}, line {line}: {expected}, not a {kind}. {hint}")
        records.append((line, record))
    return _from_objects(file, "line", records)


def _read_json(file: Path) -> RawTable:
    """One array of objects, else JSONL."""
    text = read_text(file)
    if not text.lstrip().startswith("["):
        return _read_jsonl(file)
    records: list[tuple[int, dict[str, object]]] = []
    for row, record in enumerate(_parsed(text, str(file), "Is the array complete?"), start=1):
        if not isinstance(record, dict):
            expected = 'a JSON object like {"text": ...} is expected'
            raise DataInvalid(f"{file}, row {row}: {expected}, not a {type(record).__name__}.")
        records.append((row, record))
    return _from_objects(file, "row", records)


def _parsed(text: str, where: str, hint: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        line = f"line {error.lineno}, " if isinstance(error, json.JSONDecodeError) and "\n" in text else ""
        raise DataInvalid(f"{where}: not valid JSON at {line}character {getattr(error, 'colno', 1)}. {hint}") from None
    except RecursionError:
        raise DataInvalid(f"{where}: JSON nested too deeply.") from None


def _from_objects(file: Path, unit: Literal["line", "row"], records: list[tuple[int, dict[str, object]]]) -> RawTable:
    columns: dict[str, None] = {}
    for number, record in records:
        if any(half_character(name) for name in record):
            where = place(str(file), unit, number, None)
            raise DataInvalid(f"{where}: the name of a column has half of a character. Correct the name.")
        columns.update(dict.fromkeys(record))
    rows = [(number, [record.get(name, _MISSING) for name in columns]) for number, record in records]
    return RawTable(source=str(file), unit=unit, columns=tuple(columns), rows=rows)


@dataclass(frozen=True)
class Unreadable:
    """A cell that has no Python value, such as a time beyond year 9999. It is a mistake only where it is used.

    kind: its type in the file.
    """

    kind: str


def kind_of(cell: object) -> str:
    """The type of a cell, for error messages."""
    return cell.kind if isinstance(cell, Unreadable) else type(cell).__name__


TEXT_READERS: dict[str, Callable[[Path], RawTable]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}


def columns_of(table: RawTable) -> str:
    """The names of the columns, for error messages."""
    names = ", ".join(f'"{name}"' for name in table.columns)
    tabular = table.source.endswith((".csv", ".tsv"))
    return f"Its columns: {names}{' (in its first line, the header, which every file needs)' if tabular else ''}."


def find_column(table: RawTable, names: Sequence[str]) -> str | None:
    """The column of the first of these names that the table has, in either case of letters."""
    by_lower = {name.lower(): name for name in reversed(table.columns)}
    return next((by_lower[name] for name in names if name in by_lower), None)


def text_cell(table: RawTable, number: int, name: str, cell: object) -> str:
    """A cell as a text. Raises DataInvalid that names its place."""
    where = place(table.source, table.unit, number, name)
    if isinstance(cell, str) and cell.strip():
        return whole(cell, where)
    if isinstance(cell, str):
        raise DataInvalid(f"{where}: the text is empty. Remove the record or fill it in.")
    if is_missing(cell):
        raise DataInvalid(f"{where}: the record has no value here. Remove the record or fill it in.")
    raise DataInvalid(f"{where}: a text is expected, not a {kind_of(cell)}.")


def label_cell(table: RawTable, number: int, name: str, cell: object) -> str:
    """A cell as a label, whole numbers as text. Raises DataInvalid that names its place."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int) or (isinstance(cell, float) and cell.is_integer()):
        return str(int(cell))
    where = place(table.source, table.unit, number, name)
    if isinstance(cell, str) and cell.strip():
        return whole(cell.strip(), where)
    if is_missing(cell) or isinstance(cell, str):
        raise DataInvalid(f"{where}: the label is missing. Remove the record or fill it in.")
    raise DataInvalid(f"{where}: a label must be a text or a whole number, not a {kind_of(cell)}.")
