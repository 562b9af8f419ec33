"""What the gateway itself has to say, as JSON lines."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

AUDIT = "gateway.audit"
"""The logger whose records have an attribute ``audit``, which goes into their lines as it is."""

_CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
_MEANWHILE = "\nDuring handling of the above exception, another exception occurred:\n\n"


class JsonFormatter(logging.Formatter):
    """Log records as one line of JSON each.

    Tracebacks tell where and what kind; ``exception_messages`` adds what exceptions say, which may be what a client has sent:
    ``int(body)`` fails with the body in its message.
    """

    def __init__(self, *, exception_messages: bool = False) -> None:
        super().__init__()
        self._exception_messages = exception_messages

    def format(self, record: logging.LogRecord) -> str:
        """Escaped, so that no logged text can pretend to be another line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if audit := getattr(record, "audit", None):
            line["audit"] = audit
        if record.exc_info:
            error = record.exc_info[1]
            if self._exception_messages or error is None:
                line["traceback"] = self.formatException(record.exc_info)
            else:
                line["traceback"] = "".join(_places(error))
        return json.dumps(line)


def _places(error: BaseException) -> list[str]:
    """A traceback without messages."""
    lines: list[str] = []
    if error.__cause__ is not None:
        lines += [*_places(error.__cause__), _CAUSED]
    elif error.__context__ is not None and not error.__suppress_context__:
        lines += [*_places(error.__context__), _MEANWHILE]
    lines += [
        "Traceback (most recent call last):\n",
        *traceback.format_tb(error.__traceback__),
        f"{type(error).__qualname__}\n",
    ]
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            lines += ["\nAmong them:\n", *_places(each)]
    return lines


def start_logging(level: str, *, exception_messages: bool = False) -> None:
    """Log to standard error as JSON lines; the audit whatever the level. ``exception_messages`` as `JsonFormatter` has it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(exception_messages=exception_messages))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger(AUDIT).setLevel(logging.INFO)
