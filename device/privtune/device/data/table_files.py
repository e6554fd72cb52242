"""Files to tables: JSON, JSONL, CSV, TSV, Parquet and hub data sets, with the place of every cell.

Each reader checks what can be checked without knowing what the columns mean; its errors name file and line. Cells keep
their Python type; `privtune.device.data.records` turns them into texts and labels.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from privtune.device.data.plain_text import read_text
from privtune.shared.errors import DataInvalid
from privtune.shared.validation import half_character
from privtune.shared.wording import counted, install

HUB_ID = re.compile(r"^(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w\[\]:%+-]+))?$")


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


def read_table(path: str) -> RawTable:
    """Read a local file or, if no such path exists and it looks like `owner/name`, a data set from the hub.

    Raises:
        DataInvalid: no such file, a folder, an unknown format, or contents that can't be used.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise DataInvalid(f"{path} is a folder; name one data file in it ({SUFFIXES}).")
    if file.exists():
        reader = READERS.get(file.suffix.lower())
        if reader is None:
            raise DataInvalid(f"{path}: unknown data format {file.suffix or '(no suffix)'}; use one of {SUFFIXES}.")
        return _not_empty(reader(file))
    if file.suffix.lower() not in READERS and (hub := HUB_ID.match(path)):
        return _not_empty(_read_hub(path, hub["id"], hub["config"], hub["split"] or "train"))
    raise DataInvalid(f"{path}: no such file. Give a data file ({SUFFIXES}) or a hub data set as owner/name.")


def _not_empty(table: RawTable) -> RawTable:
    if not table.rows:
        raise DataInvalid(f"{table.source} has no records: nothing follows the header.")
    return table


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


def _cells(column: Any) -> list[object]:
    """The cells of an Arrow column."""
    try:
        found: list[object] = column.to_pylist()
    except Exception:  # times and texts that Python can't hold raise errors of several libraries
        return [_cell(value) for value in column]
    return found


def _cell(value: Any) -> object:
    try:
        return value.as_py()
    except Exception:  # as above
        return Unreadable(str(value.type))


def _read_parquet(file: Path) -> RawTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.stat().st_size == 0:
        raise DataInvalid(f"{file} is empty.")
    try:
        table = pq.read_table(file)
        cells = [_cells(column) for column in table.columns]
    except (pa.ArrowException, OSError) as error:
        raise DataInvalid(f"{file} can't be read as Parquet: {str(error).splitlines()[0]}") from None
    rows = list(enumerate(zip(*cells, strict=True), start=1))
    return RawTable(source=str(file), unit="row", columns=tuple(table.column_names), rows=rows)


def _read_hub(path: str, hub_id: str, config: str | None, split: str) -> RawTable:
    try:
        from datasets import ClassLabel, load_dataset
    except ImportError:
        hint = install("hub")
        raise DataInvalid(f"{path}: no such file, and as a hub data set it needs another package: {hint}.") from None
    # each of its retries would print a warning; the error below says it all
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        data = load_dataset(hub_id, config, split=split)
    except Exception as error:  # offline, unknown and gated sets raise errors of many libraries
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        hint = "Check the name (owner/name[:config][@split]) and the network, or give a local file."
        raise DataInvalid(f"{path}: no such file, and the hub does not provide it: {first} {hint}") from None
    cells: list[list[object]] = []
    for name in data.column_names:
        column: list[object] = list(data[name])
        feature = data.features[name]
        if isinstance(feature, ClassLabel):
            names = feature.names
            column = [names[value] if isinstance(value, int) and value >= 0 else None for value in column]
        cells.append(column)
    rows = list(enumerate(zip(*cells, strict=True), start=1))
    return RawTable(source=path, unit="row", columns=tuple(data.column_names), rows=rows)


READERS: dict[str, Callable[[Path], RawTable]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
SUFFIXES = ", ".join(READERS)
