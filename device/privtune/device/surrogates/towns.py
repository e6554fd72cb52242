"""Names of towns and regions in a language, from the public table that says where a phone number is."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

_TABLE = "phonenumbers.geodata"
_CUT = re.compile(r"[,/(]")  # what is after it is the region


def towns(language: str) -> frozenset[str]:
    """Towns in lower case, as the language writes them; without a table of its own, as English does."""
    found: dict[str, set[str]] = {}
    for names in _places():
        for code, name in names.items():
            if code in (language, "en"):
                found.setdefault(code, set()).add(_CUT.split(name, maxsplit=1)[0].strip().lower())
    own = found.get(language) or found["en"]
    return frozenset(own | {" ".join(name.split()[:2]) for name in own if " " in name})


def _places() -> Iterator[dict[str, str]]:
    """The name of each place by language, file by file: imported, the table would stay, and it takes 70 MB."""
    package = importlib.util.find_spec(_TABLE)
    folders = (package.submodule_search_locations if package is not None else None) or ()
    for file in (file for folder in folders for file in sorted(Path(folder).glob("data*.py"))):
        spec = importlib.util.spec_from_file_location(f"{_TABLE}.{file.stem}", file)
        if spec is not None and spec.loader is not None:
            part = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(part)
            yield from part.data.values()
