"""The public table of towns is read and not kept."""

from __future__ import annotations

import sys

from privtune.device.surrogates.towns import towns


def test_towns_are_named_in_a_language_and_their_table_is_not_kept() -> None:
    assert {"kiel", "bad oldesloe"} <= towns("de")
    assert not [name for name in sys.modules if name.startswith("phonenumbers.geodata")], "it takes 70 MB"
