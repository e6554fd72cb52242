"""Names of towns and regions in a language, from the public table that says where a phone number is."""

from __future__ import annotations

import re
import sys

_CUT = re.compile(r"[,/(]")  # what is after it is the region


def towns(language: str) -> frozenset[str]:
    """Towns in lower case, as the language writes them; without a table of its own, as English does."""
    from phonenumbers import geodata

    found: dict[str, set[str]] = {}
    for names in geodata.GEOCODE_DATA.values():
        for code, name in names.items():
            if code in (language, "en"):
                found.setdefault(code, set()).add(_CUT.split(name, maxsplit=1)[0].strip().lower())
    for module in [one for one in sys.modules if one.startswith(f"{geodata.__name__}.") or one == geodata.__name__]:
        del sys.modules[module]  # 70 MB, of which nothing is needed again
    del sys.modules["phonenumbers"].geodata
    own = found.get(language) or found["en"]
    return frozenset(own | {" ".join(name.split()[:2]) for name in own if " " in name})
