"""Text as files, terminals and JSON bring it: UTF-8 without a byte-order mark, and only whole characters."""

from __future__ import annotations

from pathlib import Path

from privtune.shared.errors import DataInvalid
from privtune.shared.validation import half_character


def read_text(file: Path) -> str:
    """A file of the owner's as text. Raises DataInvalid that names the line: not readable, empty, not UTF-8, NUL."""
    try:
        raw = file.expanduser().read_bytes()
    except OSError as error:
        raise DataInvalid(f"{file} can't be read: {error.strerror}.") from None
    if not raw.strip():
        raise DataInvalid(f"{file} is empty.")
    return decoded(raw, str(file))


def decoded(raw: bytes, source: str) -> str:
    """The text of some bytes, without their byte-order mark. Raises DataInvalid that names the line and the byte."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataInvalid(f"{source}, line 1: this is UTF-16. Save the file as UTF-8.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from after the mark
        start = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        line = raw.count(b"\n", 0, start) + 1
        raise DataInvalid(f"{source}, line {line}: not UTF-8 (byte offset {start}). Save the file as UTF-8.") from None
    nul = raw.find(b"\0")
    if nul >= 0:
        line = raw.count(b"\n", 0, nul) + 1
        raise DataInvalid(f"{source}, line {line}: a NUL byte (byte offset {nul}). Is it a binary or damaged file?")
    return text


def whole(text: str, where: str) -> str:
    r"""The text itself. Raises DataInvalid for half of a character (a lone surrogate).

    JSON can write one ("a\ud83d"), and so does Python for command lines that are not UTF-8; no tokenizer takes it.
    """
    if (problem := half_character(text)) is not None:
        raise DataInvalid(f"{where}: {problem}. Write the character whole, or remove it.")
    return text
