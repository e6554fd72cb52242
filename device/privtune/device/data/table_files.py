"""Files to tables: JSON, JSONL, CSV, TSV, Parquet and hub data sets, with the place of every cell.

Each reader checks what can be checked without knowing what the columns mean; its errors name file and line. Cells keep
their Python type; `privtune.device.data.records` turns them into texts and labels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from privtune.shared.errors import DataInvalid
from privtune.shared.packages import require
from privtune.shared.text_tables import TEXT_READERS, RawTable, Unreadable

HUB_ID = re.compile(r"^(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w\[\]:%+-]+))?$")


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
    require(f"{path}: no such file, and as a hub data set it needs", ("datasets",), "hub")
    from datasets import load_dataset

    # each of its retries would print a warning; the error below says it all
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        data = load_dataset(hub_id, config, split=split)
    except Exception as error:  # offline, unknown and gated sets raise errors of many libraries
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        hint = "Check the name (owner/name[:config][@split]) and the network, or give a local file."
        raise DataInvalid(f"{path}: no such file, and the hub does not provide it: {first} {hint}") from None
    rows = list(enumerate(zip(*hub_cells(data), strict=True), start=1))
    return RawTable(source=path, unit="row", columns=tuple(data.column_names), rows=rows)


def hub_cells(data: Any) -> list[list[object]]:
    """The columns of a `datasets.Dataset`, class numbers as the names of their classes."""
    cells: list[list[object]] = []
    for name in data.column_names:
        column, names = list(data[name]), getattr(data.features[name], "names", None)  # of a ClassLabel
        if names is not None:
            column = [names[value] if isinstance(value, int) and value >= 0 else None for value in column]
        cells.append(column)
    return cells


READERS: dict[str, Callable[[Path], RawTable]] = {**TEXT_READERS, ".parquet": _read_parquet}
SUFFIXES = ", ".join(READERS)
