"""Structured log lines on stderr: one event per line, key=value, with the details that no client sees."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from privtune.shared.printable import escaped

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


class KeyValueFormatter(logging.Formatter):
    """`time=… level=… logger=… msg="…"`, then the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the lines of a traceback if there is one."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        parts = [
            f"time={stamp}.{int(record.msecs):03d}Z",
            f"level={record.levelname.lower()}",
            f"logger={record.name}",
            f"msg={_quoted(record.getMessage())}",
        ]
        parts += [f"{name}={_quoted(value)}" for name, value in record.__dict__.items() if name not in _STANDARD]
        line = " ".join(parts)
        if not record.exc_info:
            return line
        return "\n".join([line, *map(escaped, self.formatException(record.exc_info).split("\n"))])


def configure_logging(level: str) -> None:
    """Send every log line of this process at or above `level` to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("alembic", "sse_starlette", "asyncio", "httpx", "urllib3"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


def _quoted(value: Any) -> str:
    text = str(value)
    if text and text.isprintable() and not any(character in text for character in ' "='):
        return text
    inside = escaped(text.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"{inside}"'
