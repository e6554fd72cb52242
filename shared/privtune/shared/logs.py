"""Structured log lines of a cloud and of an agent: one event a line, as key=value or as JSON, on stderr or in a file.

What a log never holds: text, token ids, labels, tensors, secrets. Callers log names, ids, numbers and reasons; and two
bounds hold whatever they pass: a value ends after `MAX_VALUE` characters, and what looks like an API key is cut to its
visible beginning. Only our own modules speak below `info`: libraries' debug lines hold headers and contents.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

from privtune.shared.errors import StorageFull
from privtune.shared.printable import escaped

LogFormat = Literal["text", "json"]
MAX_VALUE = 1000
FILE_BYTES, FILES_KEPT = 10 << 20, 5
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
_KEY = re.compile(r"\bpt-([A-Za-z0-9_-]{6})[A-Za-z0-9_-]+")
_NOISY = ("alembic", "sse_starlette", "asyncio", "httpx", "httpcore", "urllib3")


class KeyValueFormatter(logging.Formatter):
    """`time=… level=… logger=… msg="…"`, then the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the lines of a traceback if there is one."""
        line = " ".join(f"{name}={_quoted(value)}" for name, value in _fields(record))
        return "\n".join([line, *map(escaped, _traceback(self, record))])


class JsonFormatter(logging.Formatter):
    """The same fields as an object on one line; a traceback is a list of lines."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        lines = _traceback(self, record)
        return json.dumps(dict(_fields(record)) | ({"traceback": lines} if lines else {}))


def configure_logging(level: str, form: LogFormat = "text", file: Path | None = None) -> None:
    """Send every log line of this process at or above `level` to stderr, or to a file that only its owner can read.

    A file is renamed to `.1` when it has FILE_BYTES; FILES_KEPT of those are kept. Raises StorageFull.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if file is not None:
        try:
            handler = _PrivateFile(file, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8")
        except OSError as error:
            raise StorageFull(f"Can't write the log {file}: {error.strerror}.") from error
    handler.setFormatter(JsonFormatter() if form == "json" else KeyValueFormatter())
    ours = logging.getLevelName(level.upper())
    logging.basicConfig(level=max(logging.INFO, ours), handlers=[handler], force=True)
    logging.getLogger("privtune").setLevel(ours)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, ours))


class _PrivateFile(RotatingFileHandler):
    def _open(self) -> Any:
        Path(self.baseFilename).touch(mode=0o600)
        return super()._open()


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    yield "time", f"{stamp}.{int(record.msecs):03d}Z"
    yield "level", record.levelname.lower()
    yield "logger", record.name
    yield "msg", _bounded(record.getMessage())
    for name, value in record.__dict__.items():
        if name not in _STANDARD:
            yield name, value if value is None or isinstance(value, bool | int | float) else _bounded(str(value))


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    if not record.exc_info:
        return []
    return [_bounded(line) for line in formatter.formatException(record.exc_info).split("\n")]


def _bounded(text: str) -> str:
    hidden = _KEY.sub(r"pt-\1…", text)
    return hidden if len(hidden) <= MAX_VALUE else hidden[:MAX_VALUE] + "…"


def _quoted(value: Any) -> str:
    text = str(value)
    if text and text.isprintable() and not any(character in text for character in ' "='):
        return text
    inside = escaped(text.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"{inside}"'
