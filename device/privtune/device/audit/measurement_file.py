"""Measurements kept in one JSON-lines file, one line per measurement, so that an interrupted run resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from privtune.shared.at_rest import read_bytes
from privtune.shared.errors import StorageFull
from privtune.shared.files import held, make_folder, write_text

Facts = dict[str, Any]


class MeasurementFile:
    """The measurements of one file, sorted by key. Several processes may add to it at the same time.

    private: only the owner may read the file.
    """

    def __init__(self, path: Path, *, private: bool = False) -> None:
        self.path, self._private = path, private
        self._facts = self._read()

    def all(self) -> dict[str, Facts]:
        """Every measurement by key, as of the last `keep`."""
        return self._facts

    def find(self, key: str) -> Facts | None:
        """One measurement; None if there is none."""
        return self._facts.get(key)

    def keep(self, key: str, facts: Facts) -> None:
        """Add or replace a measurement. The file changes whole or not at all. Raises StorageFull."""
        try:
            make_folder(self.path.parent)
            with held(self.path.with_name(f".{self.path.name}.lock"), wait=True):
                self._facts = dict(sorted({**self._read(), key: facts}.items()))
                lines = (json.dumps({"key": key, **one}, separators=(",", ":")) for key, one in self._facts.items())
                write_text(self.path, "\n".join(lines) + "\n", private=self._private)
        except OSError as error:
            raise StorageFull(f"{self.path} can't be written: {error.strerror or error}") from error

    def _read(self) -> dict[str, Facts]:
        """A damaged line counts as not measured."""
        found = {}
        if self.path.is_file():
            for line in read_bytes(self.path).decode("utf-8", "replace").splitlines():
                try:
                    facts = json.loads(line)
                    found[facts.pop("key")] = facts
                except (ValueError, AttributeError, KeyError, TypeError):
                    continue
        return found
