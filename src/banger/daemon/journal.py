"""The daemon's log: one JSON object a line, the operation's id in every record, capped in size.

Owns the root logger's handler and, in a detached daemon, descriptors 1 and 2 (a crash's last words land
in the log). Called by main.py once. The newest records are in bangerd.log, the ones before in bangerd.log.1.
"""

from __future__ import annotations

import logging
import os
import time
from contextvars import ContextVar
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler

import msgspec

MAX_BYTES = 8 << 20
BACKUPS = 1

current_operation: ContextVar[str] = ContextVar("current_operation", default="")
"""Set for each request and each operation's task; tasks started from there inherit it."""

_encoder = msgspec.json.Encoder()
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class JsonFormatter(logging.Formatter):
    """{"time", "level", "logger", "op", "message"} and, where there is one, "trace"."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.gmtime(record.created)
        line: dict[str, str] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if operation := current_operation.get():
            line["op"] = operation
        line["message"] = record.getMessage()
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return _encoder.encode(line).decode()


class Journal(RotatingFileHandler):
    """The log file, private to its owner."""

    def __init__(self, path: str) -> None:
        self._has_stdio = False
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", delay=False)
        os.chmod(path, 0o600)

    def take_stdio(self) -> None:
        """Descriptors 1 and 2 lead to the log from here on, and follow it when it rotates."""
        self._has_stdio = True
        self._redirect()

    def doRollover(self) -> None:
        super().doRollover()
        self._redirect()

    def _redirect(self) -> None:
        stream: TextIOWrapper | None = self.stream
        if self._has_stdio and stream is not None:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)


def open_journal(path: str, level: str) -> Journal:
    """Log to `path` from here on; level as in the settings."""
    handler = Journal(path)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(LEVELS.get(level, logging.INFO))
    return handler


def close_journal(handler: logging.Handler) -> None:
    logging.getLogger().removeHandler(handler)
    handler.close()
