"""From what an owner has (a path, or data in Python's memory) to the data sets of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from privtune.device.data.records import Columns
from privtune.device.data.source import DataSource
from privtune.device.data.tables_in_memory import HubData, SupportsArrow, fingerprint, table_of
from privtune.shared.errors import InvalidInput

Data = str | Path | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | SupportsArrow | HubData
MEMORY = "memory:"


def sources_of(
    data: Data,
    validation: Data | None = None,
    *,
    holdout: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    columns: Columns | None = None,
    chat_template: str | Path | None = None,
    own_terms: str | Path | None = None,
    name: str | None = None,
) -> tuple[DataSource, DataSource | None]:
    """Training and held-out records. A file is not read yet; what is in memory is kept there, never written.

    Args:
        data: a file (.jsonl, .json, .csv, .tsv, .parquet), a hub data set `owner/name`, a `datasets.Dataset`, a
            `pandas.DataFrame` or anything that speaks Arrow, a list of dicts, or a dict of columns.
        validation: held-out records, likewise.
        holdout: share of `data` to hold out instead.
        limit: at most this many records, drawn at random.
        seed: of the sample and the held-out part.
        columns: which column holds what; those left out are found by the header.
        chat_template: the owner's own template for conversations, a Jinja file.
        own_terms: file with words and phrases that surrogates always replace, one a line.
        name: under which the ledger adds up what leaves of data in memory; None: one name for all such data.

    Raises InvalidInput, DataInvalid.
    """
    if validation is not None and holdout:
        raise InvalidInput("Give --validation or --holdout, not both.", param="holdout")
    template = absolute(chat_template)
    if template is not None and not Path(template).is_file():
        raise InvalidInput(f"--chat-template {template}: no such file.", param="chat_template")
    train = replace(
        _source(data, "data", name),
        columns=columns or Columns(),
        limit=limit,
        seed=seed,
        chat_template=template,
        own_terms=absolute(own_terms),
    )
    if holdout:
        return train.with_holdout(holdout)
    if validation is None:
        return train, None
    held_out = _source(validation, "validation", name)
    return train, replace(train, path=held_out.path, table=held_out.table, sha256=held_out.sha256, limit=None)


def columns_of(given: Mapping[str, str] | None) -> Columns:
    """Names of columns by role. Raises InvalidInput for a role that there is not."""
    try:
        return Columns(**(given or {}))
    except TypeError:
        roles = ", ".join(Columns.__dataclass_fields__)
        raise InvalidInput(
            f"columns: a dict of names by role is expected; roles are {roles}.", param="columns"
        ) from None


def absolute(path: str | Path | None) -> str | None:
    """An existing path made absolute, so that a resumed job finds it from anywhere; a hub id stays as it is."""
    if path is None or not Path(path).expanduser().exists():
        return None if path is None else str(path)
    return str(Path(path).expanduser().absolute())


def _source(data: Data, what: str, name: str | None) -> DataSource:
    if isinstance(data, str | Path):
        return DataSource(path=absolute(data) or "")
    table = table_of(data, what)
    return DataSource(path=f"{MEMORY}{name or 'python'}", table=table, sha256=fingerprint(table))
