"""Text of the other side on a terminal and in a log."""

import pytest

from privtune.shared.printable import escaped, printable, printable_json

HOSTILE = [
    "\x1b]52;c;cm0gLXJmIH4=\x07",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "a\u202eb",
    "\u2028",
    "\r",
    "\ud83d",
    "\x7f",
    "\x08",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_character_is_left(text):
    assert printable(text).isprintable()
    assert escaped(text).isprintable()
    cleaned = printable_json({text: [text, {"x": text}], "n": 1})
    assert all(part.isprintable() for part in (*cleaned, cleaned[next(iter(cleaned))][0]))
    assert cleaned["n"] == 1


def test_ordinary_text_stays_as_it_is():
    assert printable("a\u202eb\x07c") == "a b c"
    for text in ("Größe 漢字 😀", "no\u00a0break"):
        assert printable(text) == escaped(text) == printable_json(text) == text


def test_a_log_keeps_what_was_there():
    assert escaped("a\x1b[2J\n") == "a\\x1b[2J\\n"
