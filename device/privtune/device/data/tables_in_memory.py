"""Data in Python's memory to tables: lists of dicts, dicts of columns, pandas, datasets, and whatever speaks Arrow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from privtune.device.data.table_files import hub_cells
from privtune.shared.errors import DataInvalid, InvalidInput
from privtune.shared.text_tables import RawTable

KINDS = (
    "a path, a datasets.Dataset, a pandas.DataFrame, an Arrow table, a list of dicts or a dict of columns is expected"
)


class SupportsArrow(Protocol):
    """A table that speaks Arrow: of pandas, polars, pyarrow, DuckDB and others."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Arrow's PyCapsule interface."""


class HubData(Protocol):
    """A `datasets.Dataset`."""

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""

    @property
    def features(self) -> Any:
        """Their types, by name."""


def table_of(data: Any, source: str) -> RawTable:
    """The data as a table, its rows numbered from 1.

    source: what messages call it.

    Raises InvalidInput for another kind of object, DataInvalid for one without records.
    """
    if isinstance(data, Mapping) and hasattr(data, "column_names"):
        raise InvalidInput(f"{source}: choose a split, like {source}[{next(iter(data), 'train')!r}].", param=source)
    if hasattr(data, "column_names") and hasattr(data, "features"):
        found = _columns(data.column_names, hub_cells(data), source)
    elif isinstance(data, Mapping):
        found = _columns(data, [_listed(column, source) for column in data.values()], source)
    elif hasattr(data, "itertuples"):
        plain = data.astype(object).where(data.notna(), None)  # not-a-number, not-a-time and NA are missing cells
        found = _columns(map(str, plain.columns), [plain.iloc[:, at].tolist() for at in range(plain.shape[1])], source)
    elif hasattr(data, "__arrow_c_stream__"):
        import pyarrow as pa

        table = pa.table(data)
        found = _columns(table.column_names, [column.to_pylist() for column in table.columns], source)
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes):
        found = _records(data, source)
    else:
        raise InvalidInput(f"{source}: {KINDS}, not {type(data).__name__}.", param=source)
    if not found.rows:
        raise DataInvalid(f"{source} has no records.")
    return found


def fingerprint(table: RawTable) -> str:
    """SHA-256 over names and cells, by which an unfinished job of the same data is found. It stays on the device."""
    digest = hashlib.sha256(repr(table.columns).encode("utf-8", "surrogatepass"))
    for _, cells in table.rows:
        digest.update(repr(tuple(cells)).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _columns(names: Iterable[str], cells: list[list[object]], source: str) -> RawTable:
    listed = tuple(names)
    if wrong := [name for name in listed if not isinstance(name, str) or listed.count(name) > 1]:
        raise DataInvalid(f"{source}: column {wrong[0]!r} occurs twice or has no text for a name.")
    if len({len(column) for column in cells}) > 1:
        raise DataInvalid(f"{source}: the columns are of different lengths.")
    return RawTable(source=source, unit="row", columns=listed, rows=list(enumerate(zip(*cells, strict=True), start=1)))


def _listed(column: Any, source: str) -> list[object]:
    if isinstance(column, str | bytes) or not isinstance(column, Iterable):
        raise InvalidInput(f"{source}: {KINDS}; a column of this dict is a {type(column).__name__}.", param=source)
    return list(column)


def _records(data: Sequence[Any], source: str) -> RawTable:
    names: dict[str, None] = {}
    for number, row in enumerate(data, start=1):
        if not isinstance(row, Mapping):
            raise DataInvalid(f"{source}, row {number}: a dict is expected, not a {type(row).__name__}.")
        if wrong := [name for name in row if not isinstance(name, str)]:
            raise DataInvalid(f"{source}, row {number}: a {type(wrong[0]).__name__} is no name of a column.")
        names |= dict.fromkeys(row)
    rows = [(number, [row.get(name) for name in names]) for number, row in enumerate(data, start=1)]
    return RawTable(source=source, unit="row", columns=tuple(names), rows=rows)
